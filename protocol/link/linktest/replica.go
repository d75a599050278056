package linktest

import (
	"maps"
	"sync"

	"github.com/storelay/storelay/protocol"
)

// A Replica is an agent's copy of the feeds in memory.
type Replica struct {
	mu     sync.Mutex // guards what follows
	cursor map[string]int64
	values map[string]map[string]string // feed, key
}

// NewReplica makes an empty replica.
func NewReplica() *Replica {
	return &Replica{cursor: map[string]int64{}, values: map[string]map[string]string{}}
}

// Cursor implements link.Replica.
func (r *Replica) Cursor(feed string) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cursor[feed], nil
}

// Apply implements link.Replica.
func (r *Replica) Apply(p protocol.FeedPage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.From != r.cursor[p.Feed] && !p.Reset {
		return nil
	}
	if r.values[p.Feed] == nil || p.Reset {
		r.values[p.Feed] = map[string]string{}
	}
	for _, c := range p.Changes {
		r.values[p.Feed][c.Key] = string(c.Body)
	}
	r.cursor[p.Feed] = p.To
	return nil
}

// Values are the feed's keys and bodies.
func (r *Replica) Values(feed string) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := maps.Clone(r.values[feed])
	if out == nil {
		out = map[string]string{}
	}
	return out
}
