package link_test

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
)

// A desk drives a sender by hand: the test is the relay.
type desk struct {
	t       *testing.T
	source  link.Source
	sender  *link.Sender
	now     time.Time
	batches []protocol.Batch
	asks    []protocol.Ask
	sizes   []int // of the payloads of batches
}

// newDesk connects a sender; the relay's welcome has come.
func newDesk(t *testing.T, source link.Source, feeds []string, o link.Options) *desk {
	t.Helper()
	d := &desk{t: t, source: source, now: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)}
	d.sender = link.NewSender(source, linktest.NewReplica(), feeds, o, rand.New(rand.NewPCG(1, 2)))
	d.sender.Connected(d.now, "me")
	d.step()
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1}})
	return d
}

// step lets the sender publish what it wants to, and returns when it wants to be asked again.
func (d *desk) step() (wake time.Time) {
	d.t.Helper()
	d.batches, d.asks, d.sizes = nil, nil, nil
	outs, wake, err := d.sender.Step(d.now)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, out := range outs {
		text := unpack(d.t, out.Payload)
		if out.Topic == link.TopicAsk {
			var ask protocol.Ask
			if err := json.Unmarshal(text, &ask); err != nil {
				d.t.Fatal(err)
			}
			d.asks = append(d.asks, ask)
			continue
		}
		b, err := protocol.DecodeBatch(text)
		if err != nil {
			d.t.Fatal(err)
		}
		d.batches, d.sizes = append(d.batches, b), append(d.sizes, len(out.Payload))
	}
	return wake
}

// wait lets time pass until the sender publishes a batch or asks for something.
func (d *desk) wait(most time.Duration) (waited time.Duration) {
	d.t.Helper()
	began := d.now
	for {
		wake := d.step()
		if len(d.batches)+len(d.asks) > 0 {
			return d.now.Sub(began)
		}
		if wake.IsZero() || wake.Sub(began) > most {
			d.t.Fatalf("nothing was published within %s; status %+v", most, d.sender.Status())
		}
		d.now = wake
	}
}

// hear gives the sender a message.
func (d *desk) hear(down protocol.Down) {
	d.t.Helper()
	if err := d.try(down); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) try(down protocol.Down) error {
	d.t.Helper()
	down.To = "me"
	text, err := json.Marshal(down)
	if err != nil {
		d.t.Fatal(err)
	}
	return d.sender.Received(d.now, link.TopicDown, text)
}

func (d *desk) answer(v protocol.Verdict, m protocol.Mark) {
	d.t.Helper()
	d.hear(protocol.Down{Answer: &protocol.Answer{Verdict: v, Incarnation: 1, Epoch: m.Epoch, Through: m.Through, Hash: m.Hash, Reason: "as the test wants"}})
}

// end is the mark at the end of a batch.
func end(b protocol.Batch) protocol.Mark {
	hash := b.Prev
	if b.Skip != nil {
		hash = b.Skip.Hash
	}
	for i := range b.Records {
		hash = b.Records[i].Hash(hash)
	}
	return protocol.Mark{Epoch: b.Epoch, Through: b.Last(), Hash: hash}
}

// ack acknowledges the first of the batches that the last step published.
func (d *desk) ack() {
	d.t.Helper()
	d.answer(protocol.VerdictAck, end(d.batches[0]))
	d.batches = d.batches[1:]
}

func unpack(t *testing.T, payload []byte) []byte {
	t.Helper()
	if payload[0] == '{' {
		return payload
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	text, err := dec.DecodeAll(payload, nil)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// records makes a source of one epoch with so many records of a size.
func records(n, size int) *linktest.Source {
	s := linktest.NewSource()
	s.Begin(1)
	for range n - 1 {
		s.Append(size)
	}
	return s
}
