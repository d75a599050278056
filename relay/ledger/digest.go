package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// Digest is one hash over what a chain's records have come to: the sums, the voids, the
// devices, and which records are applied, each by where its agent accepted it first. It is the
// same in whichever order, grouping and number of repeats the records came, and says nothing
// of positions, numbers and times of receipt.
func (l *Ledger) Digest(ctx context.Context, chain string) (protocol.Hash, error) {
	id, err := l.chainID(ctx, chain, false)
	if err != nil || id == 0 {
		return new(multiset).hash(), err
	}
	var all multiset
	err = l.inSnapshot(ctx, func(q querier) (err error) {
		all, err = digest(ctx, q, chain, id)
		return err
	})
	if err != nil {
		return protocol.Hash{}, fmt.Errorf("digest of chain %s: %w", chain, err)
	}
	return all.hash(), nil
}

func digest(ctx context.Context, q querier, chain string, id int64) (all multiset, err error) {
	for _, t := range []struct{ name, value string }{
		{"kpis", kpiColumns}, {"tender_days", "count, amount"}, {"item_days", "units, amount"}, {"voids", "'voided'"},
	} {
		rows, err := liveTable(ctx, q, t.name, projections[t.name].key, t.value, "", id)
		if err != nil {
			return all, err
		}
		for key, value := range rows {
			// A row that is all nought says as much as none: a void takes back, or comes first.
			if strings.Trim(value, "0|") != "" {
				all.add(t.name + " " + key + ": " + value)
			}
		}
	}
	branched := newBranches()
	if err := replay(ctx, q, chain, id, func(r *storedRow) error {
		all.add("record " + identity(r))
		return branched.see(r)
	}); err != nil {
		return all, err
	}
	devices, err := liveTable(ctx, q, "devices", projections["devices"].key, projections["devices"].value, "", id)
	for key, value := range devices {
		if branched.orderly(key) {
			all.add("device " + key + ": " + value)
		}
	}
	return all, err
}

// A multiset is a hash over lines in no order, each as often as it was added: the sum of
// their hashes. It finds mistakes; who forges lines on purpose is found by the streams' chains.
type multiset struct {
	n   int64
	sum [4]uint64
}

func (m *multiset) add(line string) {
	m.n++
	h := sha256.Sum256([]byte(line))
	for i := range m.sum {
		m.sum[i] += binary.BigEndian.Uint64(h[8*i:])
	}
}

func (m *multiset) hash() protocol.Hash {
	b := binary.BigEndian.AppendUint64(nil, uint64(m.n))
	for _, v := range m.sum {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return sha256.Sum256(b)
}

// identity names a record by what it is: a transaction by its business key and content, since
// whichever agent brings it first is taken; another by where it was accepted first.
func identity(r *storedRow) string {
	if r.it != nil && r.it.sale != nil {
		k := r.it.sale.key
		return words("transaction", k.store, k.day, k.workstation, k.sequence, sha256.Sum256(r.Body))
	}
	epoch, seq := r.Epoch, r.Seq
	if r.Was != nil {
		epoch, seq = r.Was.Epoch, r.Was.Seq
	}
	record := protocol.Record{Kind: r.Kind, At: r.At, Mono: r.mono, Day: r.Day, Body: r.Body}
	return words(r.Kind, r.Store, r.Agent, epoch, seq, record.ContentHash())
}

// Branches knows of which devices the newest state is the agent's own order, and not that of
// arrival: one agent reports the device, and its epochs are one chain.
type branches struct {
	reports map[string]map[agentKey]bool         // device's key -> who reports it
	sealed  map[agentKey]map[protocol.Epoch]bool // "" = a first epoch
	several map[agentKey]bool                    // more than one chain of epochs
}

func newBranches() *branches {
	return &branches{map[string]map[agentKey]bool{}, map[agentKey]map[protocol.Epoch]bool{}, map[agentKey]bool{}}
}

func (b *branches) see(r *storedRow) error {
	agent := agentKey{r.Store, r.Agent}
	if r.Was != nil {
		b.several[agent] = true
	}
	device := ""
	switch {
	case r.it == nil:
		var seal protocol.Seal
		if err := json.Unmarshal(r.Body, &seal); err != nil {
			return fmt.Errorf("record %d: %w", r.Pos, err)
		}
		var before protocol.Epoch
		if seal.Before != nil {
			before = seal.Before.Epoch
		}
		if b.sealed[agent] == nil {
			b.sealed[agent] = map[protocol.Epoch]bool{}
		}
		b.several[agent] = b.several[agent] || seal.Forked || b.sealed[agent][before]
		b.sealed[agent][before] = true
	case r.it.device != nil:
		device = r.it.device.Device
	case r.it.drawer != nil:
		device = r.it.drawer.Drawer
	}
	if device != "" {
		key := words(r.Store, device)
		if b.reports[key] == nil {
			b.reports[key] = map[agentKey]bool{}
		}
		b.reports[key][agent] = true
	}
	return nil
}

func (b *branches) orderly(device string) bool {
	for agent := range b.reports[device] {
		if b.several[agent] {
			return false
		}
	}
	return len(b.reports[device]) == 1
}
