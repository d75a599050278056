package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

type sample struct {
	Store   string        `yaml:"store"`
	Relays  []string      `yaml:"relays"`
	Wait    time.Duration `yaml:"wait"`
	Count   int           `yaml:"count"`
	On      bool          `yaml:"on"`
	Devices []device      `yaml:"devices"`
	HTTP    struct {
		Listen string `yaml:"listen"`
	} `yaml:"http"`
}

type device struct {
	ID       string         `yaml:"id"`
	Settings map[string]any `yaml:"settings"`
}

func (s *sample) Validate() protocol.Faults {
	var f protocol.Faults
	if s.Store == "" {
		f.Add("store", "", "missing")
	}
	return f
}

func TestAFileFillsItsStruct(t *testing.T) {
	got := sample{Count: 7}
	faults := Parse([]byte("# the shop\nstore: 0042\nrelays: [tls://a:1, tls://b:2]\nwait: 30s\non: true\ndevices:\n  - id: door\n    settings: {baud: 9600}\nhttp:\n  listen: :80\n"), &got)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	want := sample{Store: "0042", Relays: []string{"tls://a:1", "tls://b:2"}, Wait: 30 * time.Second, Count: 7, On: true,
		Devices: []device{{"door", map[string]any{"baud": uint64(9600)}}}}
	want.HTTP.Listen = ":80"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestAllFaultsOfAFileAreNamedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	text := "relay: x\nwait: soon\ncount: many\ndevices:\n  - id: door\n    setings: {}\n  - 5\nhttp: [1]\ncount: 3\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Load(path, &sample{})
	var bad *Error
	if !errors.As(err, &bad) {
		t.Fatalf("err %v, want *Error", err)
	}
	var fields []string
	for _, f := range bad.Faults {
		fields = append(fields, f.Field)
	}
	if want := []string{"relay", "wait", "count", "devices[0].setings", "devices[1]", "http", "count", "store"}; !reflect.DeepEqual(fields, want) {
		t.Errorf("faults at %v, want %v", fields, want)
	}
	for _, part := range []string{path, "line 1", "did you mean relays?", "line 2: want a duration such as 30s", "did you mean settings?"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in:\n%s", part, err)
		}
	}
}

func TestBrokenYAMLAndMissingFile(t *testing.T) {
	if f := Parse([]byte("a: [1\nb: }"), &sample{}); len(f) == 0 || !strings.Contains(f.Error(), "not YAML") {
		t.Errorf("faults %v, want not YAML", f)
	}
	if f := Parse([]byte(""), &sample{}); len(f) != 1 || f[0].Field != "store" {
		t.Errorf("empty file: %v, want store missing", f)
	}
	if err := Load(filepath.Join(t.TempDir(), "none"), &sample{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err %v, want not exist", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("store: 1\ndevices:\n - id: x\n")
	f.Fuzz(func(_ *testing.T, text string) {
		Parse([]byte(text), &sample{})
	})
}

func TestTheLevelDecidesWhatIsLogged(t *testing.T) {
	for _, level := range []string{"debug", "info", "warn", "error", "loud"} {
		var f protocol.Faults
		if CheckLevel(level, &f); (len(f) > 0) != (level == "loud") {
			t.Errorf("%s: faults %v", level, f)
		}
	}
	var out strings.Builder
	log := Logger("warn", &out)
	log.Info("quiet")
	log.Warn("heard")
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, `"msg":"heard"`) {
		t.Errorf("logged %s", s)
	}
}
