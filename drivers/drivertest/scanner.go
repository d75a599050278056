package drivertest

import (
	"context"
	"io"
	"slices"
	"sync"
)

// ScannerOptions shape a Scanner.
type ScannerOptions struct {
	Prefix string // before each code, such as an AIM identifier
	Suffix string // after each code; "" = "\r\n"
}

// A Scanner simulates a barcode scanner in serial mode (9600 8N1): each code is one line. It
// keeps nothing: what is scanned while nobody listens is lost.
type Scanner struct {
	opts ScannerOptions
	out  *outbox

	mu    sync.Mutex // guards truth
	truth []string
}

// NewScanner makes a scanner that has read nothing.
func NewScanner(opts ScannerOptions) *Scanner {
	if opts.Suffix == "" {
		opts.Suffix = "\r\n"
	}
	return &Scanner{opts: opts, out: newOutbox()}
}

// Run speaks on the line until ctx ends or the line is lost.
func (s *Scanner) Run(ctx context.Context, line io.ReadWriter) error {
	return s.out.serve(ctx, line, func([]byte) {}, nil)
}

// Scan reads a code.
func (s *Scanner) Scan(code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.truth = append(s.truth, code)
	s.out.send([]byte(s.opts.Prefix + code + s.opts.Suffix))
}

// Say sends bytes that are no code, such as half a line.
func (s *Scanner) Say(p string) { s.out.send([]byte(p)) }

// Truth lists the codes so far.
func (s *Scanner) Truth() []string { s.mu.Lock(); defer s.mu.Unlock(); return slices.Clone(s.truth) }
