package link_test

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
)

func TestTheWindowStartsWithOneBatchGrowsByAcksAndFallsBack(t *testing.T) {
	o := link.Options{MaxRecords: 5, Window: 20_000}
	d := newDesk(t, records(4000, 100), nil, o)
	var counts []int
	for range 8 {
		d.step()
		counts = append(counts, len(d.batches))
		bytes := 0
		for _, n := range d.sizes {
			bytes += n
		}
		s := d.sender.Status()
		if s.FlyingBytes != bytes || s.FlyingBatches != len(d.batches) || s.WindowBytes > o.Window {
			t.Fatalf("status %+v, want %d bytes in %d batches", s, bytes, len(d.batches))
		}
		if last := d.sizes[len(d.sizes)-1]; bytes-last >= o.Window {
			t.Fatalf("%d bytes under way, want no more sent when there were %d", bytes, o.Window)
		}
		for len(d.batches) > 0 {
			d.ack()
		}
	}
	if counts[0] != 1 || counts[1] > 3 || counts[2] > 7 || counts[3] > 15 || counts[7] < 60 { // one batch may reach over the window
		t.Errorf("batches per round %v, want them doubled from 1 on", counts)
	}
	d.step()
	d.now = d.now.Add(time.Minute) // no answer: stalled
	if d.step(); len(d.batches) != 1 {
		t.Errorf("%d batches after a stall, want 1", len(d.batches))
	}
}

func TestABatchFliesHoweverSmallTheWindow(t *testing.T) {
	d := newDesk(t, records(40, 3000), nil, link.Options{MaxRecords: 5, Window: 10})
	for range 5 {
		if d.step(); len(d.batches) != 1 {
			t.Fatalf("%d batches, want 1", len(d.batches))
		}
		d.ack()
	}
}

func TestStallsDoubleWithJitterAndEndWithProgress(t *testing.T) {
	d := newDesk(t, records(40, 100), nil, link.Options{MaxRecords: 5})
	d.step()
	for _, want := range []time.Duration{3, 6, 12, 15, 15} {
		if waited := d.wait(time.Minute); waited < want*time.Second || waited > 2*want*time.Second {
			t.Errorf("sent again after %s, want %d s to twice as much", waited, want)
		}
	}
	d.ack()
	d.step()
	if waited := d.wait(time.Minute); waited < 3*time.Second || waited > 6*time.Second {
		t.Errorf("after progress sent again after %s, want 3 to 6 s", waited)
	}
}

func TestAnEpochDoesNotOvertakeTheOneBefore(t *testing.T) {
	source := records(4, 100)
	source.Begin(2)
	source.Append(100)
	d := newDesk(t, source, nil, link.Options{MaxRecords: 2})
	d.step()
	d.ack()
	d.step()
	if len(d.batches) != 1 || d.batches[0].First != 3 {
		t.Fatalf("batches %+v, want the rest of the first epoch alone", d.batches)
	}
	d.ack()
	if d.step(); len(d.batches) == 0 || d.batches[0].First != 1 {
		t.Errorf("batches %+v, want the second epoch", d.batches)
	}
}

// noise is a body of so many bytes that does not compress.
func noise(r *rand.Rand, size int) []byte {
	var chacha [32]byte
	binary.LittleEndian.PutUint64(chacha[:], r.Uint64())
	b := make([]byte, size*3/4)
	_, _ = rand.NewChaCha8(chacha).Read(b) // never fails
	return fmt.Appendf(nil, `{"pad":"%s"}`, base64.StdEncoding.EncodeToString(b))
}

// TestOversizedBatchesAreHalved: whatever the records' sizes, no payload is over the limit of
// the wire, and a relay that takes less gets less.
func TestOversizedBatchesAreHalved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := linktest.NewWorld(1, link.Options{MaxRecords: 12, MaxBytes: 4 << 20})
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		w.Source.Begin(1)
		for range rapid.IntRange(1, 7).Draw(t, "records") {
			w.Source.AppendBody(noise(r, rapid.SampledFrom([]int{100, 10_000, 60_000, 126_000}).Draw(t, "size")))
		}
		if rapid.Bool().Draw(t, "damage") {
			w.Source.Lose(0, 1, rapid.Uint64Range(1, w.Source.Lengths()[0]).Draw(t, "to"), protocol.SkipDamaged, true)
		}
		most := rapid.IntRange(1, 5).Draw(t, "the relay takes") // records
		w.Sink.Judge = func(b protocol.Batch) protocol.Verdict {
			if len(b.Records) > most {
				return protocol.VerdictTooBig
			}
			return ""
		}
		if err := w.Settle(); err != nil {
			t.Fatal(err)
		}
		if s := w.Sender.Status(); s.Refused != "" || s.Resent > 10 {
			t.Errorf("status %+v, want the size found by halving", s)
		}
	})
}

// huge is a source whose only record is over every limit.
type huge struct{ *linktest.Source }

func (h huge) Read(from protocol.Position, n, bytes int) (protocol.Batch, error) {
	b, err := h.Source.Read(from, n, bytes)
	if len(b.Records) > 0 {
		b.Records[0].Body = noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
	}
	return b, err
}

func TestARecordOverTheLimitOfTheWireIsAnError(t *testing.T) {
	d := newDesk(t, huge{records(3, 10)}, nil, link.Options{})
	outs, _, err := d.sender.Step(d.now)
	if !errors.Is(err, link.ErrTooBig) || len(outs) != 0 {
		t.Errorf("%d messages, err %v, want ErrTooBig", len(outs), err)
	}
}
