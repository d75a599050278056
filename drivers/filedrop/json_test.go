package filedrop

import (
	"fmt"
	"strings"
	"testing"
)

func TestEDG04JSONFiles(t *testing.T) {
	for name, text := range map[string]string{
		"one":       sale(1),
		"lines":     sale(1) + "\n" + sale(2) + "\n",
		"a list":    " [" + sale(1) + ",\n" + sale(2) + "]\n",
		"UTF-16":    utf16Text(sale(1), false),
		"with mark": "\xef\xbb\xbf" + sale(1),
		"nothing":   "[]",
	} {
		b := newBench(t, Config{Format: FormatJSON})
		b.write("x.json", text)
		b.mustRound()
		b.wantFiles("", "done/2026-11-22/x.json")
		if want := strings.Count(text, `"sequenceNumber"`) + strings.Count(text, "s\x00e\x00q\x00u"); len(b.agent.accepted) != want {
			t.Errorf("%s: %d accepted, want %d", name, len(b.agent.accepted), want)
		}
	}
}

func TestEDG04BadJSONIsRejectedWithItsLine(t *testing.T) {
	for _, tt := range []struct {
		name, text     string
		line, accepted int
		says           string
	}{
		{"half", sale(1) + "\n" + sale(2)[:99], 3, 0, "ends too early"},
		{"a list without its end", "[" + sale(1) + "\n", 3, 0, "list ends too early"},
		{"no comma", "[" + sale(1) + sale(2) + "]", 2, 0, "comma"},
		{"more behind a list", "[" + sale(1) + "]\n[]", 3, 0, "behind the end"},
		{"a number", "42", 1, 0, "want an object"},
		{"long", `{"a":"` + strings.Repeat("x", 2<<20) + `"}`, 1, 0, "longer than"},
		{"a field", sale(1) + "\n" + strings.Replace(sale(2), `"SEK"`, `"KRO"`, 1), 3, 1, "currency"},
		{"a till of another name", strings.Replace(sale(1), `"4"`, `"till 4"`, 1), 1, 0, "workstation"},
		{"another store's", strings.Replace(sale(1), `{`, `{"store":"0002",`, 1), 1, 0, "store"},
		{"a name twice", strings.Replace(sale(1), `{`, `{"total":1,`, 1), 1, 0, "named twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, Config{Format: FormatJSON})
			b.write("x.json", tt.text)
			b.mustRound()
			r := b.report("x.json")
			line, says := r.Line, r.Problem
			if len(r.Refusals) > 0 {
				line, says = r.Refusals[0].Line, fmt.Sprint(r.Refusals[0].Faults)
			}
			if line != tt.line || !strings.Contains(says, tt.says) || len(b.agent.accepted) != tt.accepted {
				t.Errorf("line %d %q, %d accepted, want line %d, %q and %d", line, says, len(b.agent.accepted), tt.line, tt.says, tt.accepted)
			}
		})
	}
}
