package journal

import (
	"bytes"
	"slices"
	"sync"
)

// A MemoryIndex stands in for Badger in simulations and tests: it outlives the journal that
// uses it, as files do, until Crash takes the newest changes from it or Lose takes all.
type MemoryIndex struct {
	mu        sync.Mutex // guards what follows
	pairs     []pair     // by key; copied when it is changed under a view
	shared    bool       // a view reads pairs
	undo      [][]pair   // newest last: what each of the newest commits has replaced
	condemned bool
	starts    int
}

// A pair without a value is a key that is gone.
type pair struct{ k, v []byte }

// undoable is how many of the newest commits a crash can take back.
const undoable = 64

// NewMemoryIndex makes an empty index.
func NewMemoryIndex() *MemoryIndex { return &MemoryIndex{} }

// Crash is what a power cut does to an index that is not synced: of the newest commits it
// keeps all but some, which lose says for their number.
func (m *MemoryIndex) Crash(lose func(commits int) int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := lose(len(m.undo)); n > 0; n-- {
		last := m.undo[len(m.undo)-1]
		m.undo = m.undo[:len(m.undo)-1]
		for _, p := range slices.Backward(last) {
			m.put(p)
		}
	}
	m.undo = nil
}

// Lose is a folder that was deleted.
func (m *MemoryIndex) Lose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pairs, m.shared, m.undo, m.condemned = nil, false, nil, false
}

// Clone copies the index, as the image of a disk does.
func (m *MemoryIndex) Clone() *MemoryIndex {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &MemoryIndex{pairs: slices.Clone(m.pairs), condemned: m.condemned, starts: m.starts}
}

// Equal says whether two indexes hold the same.
func (m *MemoryIndex) Equal(o *MemoryIndex) bool {
	return slices.EqualFunc(m.Clone().pairs, o.Clone().pairs, func(a, b pair) bool { return bytes.Equal(a.k, b.k) && bytes.Equal(a.v, b.v) })
}

func (m *MemoryIndex) find(key []byte) (int, bool) {
	return slices.BinarySearchFunc(m.pairs, key, func(p pair, k []byte) int { return bytes.Compare(p.k, k) })
}

// put changes one pair and gives what stood there. It needs m.mu.
func (m *MemoryIndex) put(p pair) (before pair) {
	if m.shared {
		m.pairs, m.shared = slices.Clone(m.pairs), false
	}
	i, found := m.find(p.k)
	before.k = p.k
	if found {
		before.v = m.pairs[i].v
	}
	switch {
	case p.v == nil && found:
		m.pairs = slices.Delete(m.pairs, i, i+1)
	case p.v != nil && found:
		m.pairs[i].v = p.v
	case p.v != nil:
		m.pairs = slices.Insert(m.pairs, i, p)
	}
	return before
}

func (m *MemoryIndex) view() view {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shared = true
	return memoryView{m.pairs}
}

func (m *MemoryIndex) update() update { return &memoryUpdate{m: m} }
func (m *MemoryIndex) size() int64    { return 0 }
func (m *MemoryIndex) flush() error   { return nil }
func (m *MemoryIndex) flatten() error { return nil }
func (m *MemoryIndex) close() error   { return nil }

type memoryView struct{ pairs []pair }

func (v memoryView) at(key []byte) (int, bool) {
	return slices.BinarySearchFunc(v.pairs, key, func(p pair, k []byte) int { return bytes.Compare(p.k, k) })
}

func (v memoryView) get(key []byte) ([]byte, error) {
	if i, found := v.at(key); found {
		return append([]byte{}, v.pairs[i].v...), nil
	}
	return nil, nil
}

func (v memoryView) each(prefix, from []byte, visit func(k, v []byte) error) error {
	i, _ := v.at(from)
	for ; i < len(v.pairs) && bytes.HasPrefix(v.pairs[i].k, prefix); i++ {
		if err := visit(v.pairs[i].k, v.pairs[i].v); err != nil {
			return err
		}
	}
	return nil
}

func (memoryView) discard() {}

type memoryUpdate struct {
	m       *MemoryIndex
	changes []pair
}

func (u *memoryUpdate) set(k, v []byte) error {
	u.changes = append(u.changes, pair{bytes.Clone(k), append([]byte{}, v...)})
	return nil
}

func (u *memoryUpdate) del(k []byte) error {
	u.changes = append(u.changes, pair{bytes.Clone(k), nil})
	return nil
}

func (u *memoryUpdate) commit() error {
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	undo := make([]pair, 0, len(u.changes))
	for _, p := range u.changes {
		undo = append(undo, u.m.put(p))
	}
	if u.m.undo = append(u.m.undo, undo); len(u.m.undo) > undoable {
		u.m.undo = u.m.undo[1:]
	}
	u.changes = nil
	return nil
}

func (u *memoryUpdate) discard() { u.changes = nil }
