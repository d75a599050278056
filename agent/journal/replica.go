package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

const (
	maxFeedKey  = 1 << 10            // bytes of a change's key
	maxFeedBody = protocol.MaxRecord // bytes of a change's body
)

// A feedState says which generation of a feed's replica is read, and which is being built
// aside after a reset.
type feedState struct {
	active   uint64
	cursor   int64
	building uint64 // 0 = none
	at       int64  // cursor of building
}

// step takes a page: the state after it and the generation that the page goes to; false when
// the page does not follow the cursor.
func (s feedState) step(p *protocol.FeedPage) (next feedState, gen uint64, ok bool) {
	switch {
	case p.Reset:
		s.building = max(s.active, s.building) + 1
	case p.From != s.asked() && !mutant.On(mutant.ApplyPageTwice):
		return s, 0, false
	case s.building == 0:
		s.cursor = p.To
		return s, s.active, true
	}
	gen, s.at = s.building, p.To
	if !p.More {
		s = feedState{active: s.building, cursor: s.at}
	}
	return s, gen, true
}

// asked is the version after which the next page is asked for.
func (s feedState) asked() int64 {
	if s.building > 0 {
		return s.at
	}
	return s.cursor
}

func (s feedState) encode() []byte {
	b := binary.AppendVarint(binary.AppendUvarint(nil, s.active), s.cursor)
	return binary.AppendVarint(binary.AppendUvarint(b, s.building), s.at)
}

func decodeFeed(b []byte) (feedState, error) {
	d := decoder{b: b}
	s := feedState{active: d.uvarint(), cursor: d.varint(), building: d.uvarint(), at: d.varint()}
	return s, d.err()
}

// feed is the durable state of a feed.
func (j *Journal) feed(feed string) feedState {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.feedLocked(feed)
}

func (j *Journal) feedLocked(feed string) feedState {
	if s, ok := j.feeds[feed]; ok {
		return s
	}
	return feedState{active: 1}
}

// Cursor is the version through which the feed is applied; 0 when never. While a reset's
// pages are built aside it is theirs, so that the next page is asked for.
func (j *Journal) Cursor(feed string) (int64, error) { return j.feed(feed).asked(), nil }

// Apply makes a page and its cursor durable in one step; see link.Replica. The pages of a
// reset are built aside and swapped in whole with the last one. It waits for Run.
func (j *Journal) Apply(page protocol.FeedPage) error {
	if !protocol.ValidID(page.Feed) {
		return fmt.Errorf("apply page: %q is no feed", page.Feed)
	}
	size := 0
	for i := range page.Changes {
		c := &page.Changes[i]
		if len(c.Key) > maxFeedKey || len(c.Body) > maxFeedBody {
			return fmt.Errorf("apply page of %s: %.64q: %w: key %d bytes of %d, body %d of %d",
				page.Feed, c.Key, ErrTooBig, len(c.Key), maxFeedKey, len(c.Body), maxFeedBody)
		}
		size += len(c.Key) + len(c.Body)
	}
	r := &request{page: &page, size: size, answer: make(chan answer, 1)}
	if !j.queue.put(r) {
		return fmt.Errorf("apply page of %s: %w", page.Feed, ErrClosed)
	}
	j.work()
	if a := <-r.answer; a.err != nil {
		return fmt.Errorf("apply page of %s: %w", page.Feed, a.err)
	}
	return nil
}

// Lookup is one key of a feed's replica; false when it is not there or was deleted.
func (j *Journal) Lookup(feed, key string) (protocol.Change, bool, error) {
	j.mu.Lock()
	k := replicaKey(feed, j.feedLocked(feed).active, key)
	if h, ok := j.overlay.changes[string(k)]; ok {
		j.mu.Unlock()
		return h.v, h.v.Body != nil, nil
	}
	t := j.db.view() // with mu held: the generation is not swept before it
	j.mu.Unlock()
	defer t.discard()
	v, err := t.get(k)
	if err == nil && v == nil {
		return protocol.Change{}, false, nil
	}
	var c protocol.Change
	if err == nil {
		c, err = decodeChange(key, v)
	}
	if err != nil {
		return protocol.Change{}, false, fmt.Errorf("look up %s %s: %w", feed, key, err)
	}
	return c, true, nil
}

// Each visits a feed's replica in the order of its keys, as it stood at the call, until visit
// returns false.
func (j *Journal) Each(feed string, visit func(protocol.Change) bool) error {
	j.mu.Lock()
	prefix := genKey(feed, j.feedLocked(feed).active)
	newer := map[string]protocol.Change{}
	for k, h := range j.overlay.changes {
		if strings.HasPrefix(k, string(prefix)) {
			newer[k[len(prefix):]] = h.v
		}
	}
	t := j.db.view() // with mu held: what left the overlay is in it
	j.mu.Unlock()
	defer t.discard()
	keys := slices.Sorted(maps.Keys(newer))
	before := func(key string, all bool) bool { // visits the newer ones before key
		for len(keys) > 0 && (all || keys[0] < key) {
			if c := newer[keys[0]]; c.Body != nil && !visit(c) {
				return false
			}
			keys = keys[1:]
		}
		return true
	}
	err := t.each(prefix, prefix, func(k, v []byte) error {
		key := string(k[len(prefix):])
		if !before(key, false) {
			return errStop
		}
		if len(keys) > 0 && keys[0] == key {
			return nil
		}
		c, err := decodeChange(key, v)
		if err == nil && !visit(c) {
			err = errStop
		}
		return err
	})
	if errors.Is(err, errStop) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read feed %s: %w", feed, err)
	}
	before("", true)
	return nil
}

// decodeChange reads encodeChange; the body is copied.
func decodeChange(key string, v []byte) (protocol.Change, error) {
	d := decoder{b: v}
	c := d.change(key)
	c.Body = slices.Clone(c.Body)
	return c, d.err()
}
