package config

import (
	"io"
	"log/slog"

	"github.com/storelay/storelay/protocol"
)

// CheckLevel notes a fault at the key log unless the level is one that Logger knows.
func CheckLevel(level string, f *protocol.Faults) {
	switch level {
	case "debug", "info", "warn", "error":
	default:
		f.Add("log", "", "want debug, info, warn or error, got %q", level)
	}
}

// Logger writes JSON lines of the level (debug, info, warn, error) and above to w.
func Logger(level string, w io.Writer) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo // CheckLevel has refused it before
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l}))
}
