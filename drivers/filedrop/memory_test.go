package filedrop

import (
	"io"
	"runtime"
	"strings"
	"testing"
)

// A repeated text, without holding it.
type repeated struct {
	head, piece, tail string
	pieces            int
	now               *strings.Reader
	state             int
}

func (r *repeated) Read(p []byte) (int, error) {
	for {
		if r.now != nil {
			if n, err := r.now.Read(p); err == nil {
				return n, nil
			}
		}
		switch {
		case r.state == 0:
			r.now, r.state = strings.NewReader(r.head), 1
		case r.pieces > 0:
			r.pieces--
			r.now = strings.NewReader(r.piece)
		case r.state == 1:
			r.now, r.state = strings.NewReader(r.tail), 2
		default:
			return 0, io.EOF
		}
	}
}

// However long a file is, one transaction of it is in memory.
func TestEDG04ALongFileIsReadPieceByPiece(t *testing.T) {
	xml := sample(t, "tax-on-top.xml")
	from, to := strings.Index(xml, "<Transaction>"), strings.Index(xml, "</Transaction>")+len("</Transaction>")
	row := strings.Split(swedishTable, "\n")
	for name, tt := range map[string]struct {
		cfg  Config
		text *repeated
	}{
		"poslog": {Config{Format: FormatPOSLog}, &repeated{head: xml[:from], piece: xml[from:to], tail: xml[to:], pieces: 8000}},
		"json":   {Config{Format: FormatJSON}, &repeated{head: "[" + sale(1), piece: "," + sale(2), tail: "]", pieces: 20000}},
		"csv":    {swedish, &repeated{head: windows(row[0]) + "\n", piece: windows(row[6] + "\n" + row[7] + "\n"), pieces: 20000}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, tt.cfg)
			var before, now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			n, most := 0, uint64(0)
			err := b.drop.format(open(t.Context(), tt.text), func(f found) error {
				if n++; n%4000 == 0 {
					runtime.GC()
					runtime.ReadMemStats(&now)
					most = max(most, now.HeapAlloc)
				}
				return nil
			})
			if err != nil || n < 8000 {
				t.Fatalf("%d transactions, %v", n, err)
			}
			if most > before.HeapAlloc+4<<20 {
				t.Errorf("%d KiB are held in the middle of the file, want a piece of it", (most-before.HeapAlloc)>>10)
			}
		})
	}
}
