package journal

import (
	"encoding/binary"
	"time"

	"github.com/storelay/storelay/protocol"
)

// An overlay is what is durable but not yet in the index. It is guarded by Journal.mu.
type overlay struct {
	keys    map[keyHash]held[known]
	states  map[string]held[[]byte]
	changes map[string]held[protocol.Change] // by replicaKey; no body = gone
}

// A held value belongs to a group.
type held[T any] struct {
	v T
	n uint64
}

// A known key is where its record stands.
type known struct {
	ord, seq uint64
	digest   digest
	at       string
}

// A digest is enough of a request's to tell it from another.
type digest [16]byte

func newOverlay() overlay {
	return overlay{map[keyHash]held[known]{}, map[string]held[[]byte]{}, map[string]held[protocol.Change]{}}
}

func (o *overlay) add(g *group) {
	for _, p := range g.parts {
		if r := p.rec; r != nil {
			for _, k := range r.keys {
				o.keys[hashKey(k)] = held[known]{r.known(), g.n}
			}
			if r.stateKey != "" {
				o.states[r.stateKey] = held[[]byte]{r.state, g.n}
			}
		}
		if p.page != nil {
			for _, c := range p.page.Changes {
				o.changes[string(replicaKey(p.page.Feed, p.gen, c.Key))] = held[protocol.Change]{c, g.n}
			}
		}
	}
}

// drop forgets what the group brought, where no later group brought it anew.
func (o *overlay) drop(g *group) {
	for _, p := range g.parts {
		if r := p.rec; r != nil {
			for _, k := range r.keys {
				dropHeld(o.keys, hashKey(k), g.n)
			}
			dropHeld(o.states, r.stateKey, g.n)
		}
		if p.page != nil {
			for _, c := range p.page.Changes {
				dropHeld(o.changes, string(replicaKey(p.page.Feed, p.gen, c.Key)), g.n)
			}
		}
	}
}

func dropHeld[K comparable, T any](m map[K]held[T], k K, n uint64) {
	if h, ok := m[k]; ok && h.n <= n {
		delete(m, k)
	}
}

func (s *stored) known() known {
	return known{ord: s.ord, seq: s.rec.Seq, digest: digest(s.digest[:]), at: s.rec.At}
}

// encode is short: there is one for each record of RetainFor. The time is milliseconds and
// the zone's minutes, or the text itself where those do not give it back.
func (k known) encode() []byte {
	b := binary.AppendUvarint(nil, k.ord)
	b = binary.AppendUvarint(b, k.seq)
	b = append(b, k.digest[:]...)
	if at, err := time.Parse(timeForm, k.at); err == nil {
		_, east := at.Zone()
		if ms, minutes := at.UnixMilli(), int64(east/60); timeOf(ms, minutes) == k.at {
			return binary.AppendVarint(binary.AppendVarint(append(b, 0), ms), minutes)
		}
	}
	return putText(b, k.at)
}

func decodeKnown(b []byte) (known, bool) {
	d := decoder{b: b}
	k := known{ord: d.uvarint(), seq: d.uvarint()}
	copy(k.digest[:], d.take(uint64(len(k.digest))))
	if k.at = d.text(); k.at == "" {
		k.at = timeOf(d.varint(), d.varint())
	}
	return k, !d.bad
}

func timeOf(ms, minutesEast int64) string {
	return time.UnixMilli(ms).In(time.FixedZone("", int(minutesEast)*60)).Format(timeForm)
}
