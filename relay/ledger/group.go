package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A group is one transaction over one chain: what it read under the chain's lock, and what
// it is going to write.
type group struct {
	chain string
	id    int64
	jobs  []*job
	at0   int64 // microseconds, when the group was received

	// Under the lock.
	head, lastStream, lastQuarantined, feedVersion int64
	incarnation                                    int64
	agents                                         map[agentKey]*agent
	streams                                        map[streamKey]*stream
	sales                                          map[saleKey]*known
	voids                                          map[saleKey]bool
	numbers                                        map[numberKey]*number
	resent                                         map[resentKey]bool
	counters                                       map[counterKey]*counted

	changes
}

type agentKey struct{ store, agent string }

type agent struct {
	state   string
	streams bool // has any
	fresh   bool // has no row yet
}

type streamKey struct {
	store, agent string
	epoch        protocol.Epoch
}

type stream struct {
	key     streamKey
	id      int64 // 0 = no row yet
	through uint64
	hash    protocol.Hash
	sealed  int64   // -1 = open
	items   []*item // what this group appended, in order
	holes   []hole  // that this group made
	holed   bool    // has holes of groups before
	moved   bool
}

// found gives a stream its number.
func (g *group) found(s *stream) {
	if s.id == 0 {
		g.lastStream++
		s.id = g.lastStream
	}
}

// append moves a stream over one more record.
func (s *stream) append(it *item) {
	s.items = append(s.items, it)
	s.through, s.hash, s.moved = s.through+1, it.hash, true
}

// A known transaction is in the ledger, or on its way in this group.
type known struct {
	pos    int64
	kind   protocol.TransactionType
	body   []byte
	share  *share // in this group
	row    int    // in changes.sales; -1 = in the database
	voided bool
}

type numberKey struct {
	store string
	kind  protocol.TransactionType
}

type number struct {
	last   int64
	stored bool
	moved  bool
}

type resentKey struct {
	streamKey
	seq    uint64
	sha256 protocol.Hash
}

func newGroup(chain string, id int64, jobs []*job, now time.Time) *group {
	return &group{
		chain: chain, id: id, jobs: jobs, at0: now.UnixMicro(),
		agents:   map[agentKey]*agent{},
		streams:  map[streamKey]*stream{},
		sales:    map[saleKey]*known{},
		voids:    map[saleKey]bool{},
		numbers:  map[numberKey]*number{},
		resent:   map[resentKey]bool{},
		counters: map[counterKey]*counted{},
		changes:  newChanges(),
	}
}

// stream gives a stream's state; one that has no row stands at its genesis.
func (g *group) stream(from protocol.Origin, epoch protocol.Epoch) *stream {
	key := streamKey{from.Store, from.Agent, epoch}
	s := g.streams[key]
	if s == nil {
		s = &stream{key: key, sealed: -1, hash: protocol.Genesis(g.chain, from.Store, from.Agent, epoch)}
		g.streams[key] = s
	}
	return s
}

// lock takes the chain's row and reads, in the same round trip, what the jobs are going to
// be compared with.
func (g *group) lock(ctx context.Context, t tx, lock string) error {
	agents, streams := newRows("ittt"), newRows("ittt")
	sales, numbers, resent, counters := newRows("ittti"), newRows("itt"), newRows("itttii"), newRows("ittt")
	seenSale, seenNumber, seenCounter := map[saleKey]bool{}, map[numberKey]bool{}, map[counterKey]bool{}
	wantStream := func(from protocol.Origin, epoch protocol.Epoch) {
		key := streamKey{from.Store, from.Agent, epoch}
		if g.streams[key] == nil && epoch.Valid() {
			g.stream(from, epoch)
			streams.add(g.id, from.Store, from.Agent, string(epoch))
		}
	}
	wantSale := func(key saleKey) {
		if !seenSale[key] {
			seenSale[key] = true
			sales.add(g.id, key.store, key.day, key.workstation, key.sequence)
		}
	}
	for _, j := range g.jobs {
		key := agentKey{j.from.Store, j.from.Agent}
		if g.agents[key] == nil {
			g.agents[key] = &agent{state: AgentActive, fresh: j.again == nil}
			agents.add(g.id, key.store, key.agent, string(asideEpoch(j.from)))
		}
		if j.refuse != "" {
			continue
		}
		whose := j.whose()
		wantStream(whose, j.epoch)
		if j.seal != nil && j.seal.Before != nil {
			wantStream(whose, j.seal.Before.Epoch)
		}
		resent.add(g.id, whose.Store, whose.Agent, string(j.epoch), int64(j.begin()), int64(j.last()))
		if j.of != nil {
			continue // nothing of it is applied
		}
		for _, it := range j.items {
			if it.loss != nil {
				wantStream(j.from, it.loss.Epoch)
			}
			if was := it.record.Was; was != nil && it.cause == "" {
				wantStream(j.from, was.Epoch)
				resent.add(g.id, j.from.Store, j.from.Agent, string(was.Epoch), int64(was.Seq), int64(was.Seq))
			}
			if it.footfall != nil {
				if c := (counterKey{j.from.Store, j.from.Agent, storable(it.footfall.Counter)}); !seenCounter[c] {
					seenCounter[c] = true
					counters.add(g.id, c.store, c.agent, c.counter)
				}
			}
			if it.sale == nil {
				continue
			}
			wantSale(it.sale.key)
			if it.sale.voids != nil {
				wantSale(*it.sale.voids)
			}
			if n := (numberKey{it.sale.key.store, it.sale.kind}); !seenNumber[n] {
				seenNumber[n] = true
				g.numbers[n] = &number{}
				numbers.add(g.id, n.store, string(n.kind))
			}
		}
	}
	err := t.run(ctx, false,
		statement{
			text: "SELECT head, streams, quarantined, feed_version FROM chains WHERE id = $1" + lock,
			args: []any{g.id},
			scan: func(row scanner) error {
				return row.Scan(&g.head, &g.lastStream, &g.lastQuarantined, &g.feedVersion)
			},
		},
		statement{
			text: "SELECT incarnation FROM ledger",
			scan: func(row scanner) error { return row.Scan(&g.incarnation) },
		},
		statement{
			text: keyed("chain, store, agent, aside", `SELECT a.store, a.agent, a.state,
				CASE WHEN EXISTS (SELECT 1 FROM streams s WHERE s.chain = a.chain AND s.store = a.store AND s.agent = a.agent AND s.epoch <> k.aside) THEN 1 ELSE 0 END
				FROM k JOIN agents a ON a.chain = k.chain AND a.store = k.store AND a.agent = k.agent`),
			rows: agents,
			scan: func(row scanner) error {
				var key agentKey
				var a agent
				var streams int64
				err := row.Scan(&key.store, &key.agent, &a.state, &streams)
				a.streams = streams != 0
				g.agents[key] = &a
				return err
			},
		},
		statement{
			text: keyed("chain, store, agent, epoch", `SELECT s.store, s.agent, s.epoch, s.id, s.through, s.hash, s.sealed,
				CASE WHEN EXISTS (SELECT 1 FROM holes h WHERE h.chain = s.chain AND h.store = s.store AND h.agent = s.agent AND h.epoch = s.epoch AND length(h.hash) > 0) THEN 1 ELSE 0 END
				FROM k JOIN streams s ON s.chain = k.chain AND s.store = k.store AND s.agent = k.agent AND s.epoch = k.epoch`),
			rows: streams,
			scan: func(row scanner) error {
				var key streamKey
				s := &stream{}
				var through, holed int64
				var hash []byte
				err := row.Scan(&key.store, &key.agent, (*string)(&key.epoch), &s.id, &through, &hash, &s.sealed, &holed)
				s.key, s.through, s.holed = key, uint64(through), holed != 0
				copy(s.hash[:], hash)
				g.streams[key] = s
				return err
			},
		},
		statement{
			text: keyed("chain, store, day, workstation, sequence", `SELECT b.store, b.business_day, b.workstation, b.sequence, b.pos, r.type, r.voided, r.body
				FROM k JOIN business_keys b ON b.chain = k.chain AND b.store = k.store AND b.business_day = k.day
				AND b.workstation = k.workstation AND b.sequence = k.sequence
				JOIN records r ON r.chain = b.chain AND r.pos = b.pos`),
			rows: sales,
			scan: func(row scanner) error {
				var key saleKey
				k := &known{row: -1}
				var voided int64
				err := row.Scan(&key.store, &key.day, &key.workstation, &key.sequence, &k.pos, (*string)(&k.kind), &voided, &k.body)
				k.voided = voided != 0
				g.sales[key] = k
				return err
			},
		},
		statement{
			text: keyed("chain, store, day, workstation, sequence", `SELECT v.store, v.business_day, v.workstation, v.sequence
				FROM k JOIN voids v ON v.chain = k.chain AND v.store = k.store AND v.business_day = k.day
				AND v.workstation = k.workstation AND v.sequence = k.sequence`),
			rows: sales,
			scan: func(row scanner) error {
				var key saleKey
				err := row.Scan(&key.store, &key.day, &key.workstation, &key.sequence)
				g.voids[key] = true
				return err
			},
		},
		statement{
			text: keyed("chain, store, agent, counter", `SELECT c.store, c.agent, c.counter, c.raw_in, c.raw_out
				FROM k JOIN counters c ON c.chain = k.chain AND c.store = k.store AND c.agent = k.agent AND c.counter = k.counter`),
			rows: counters,
			scan: func(row scanner) error {
				var key counterKey
				var c counted
				err := row.Scan(&key.store, &key.agent, &key.counter, &c.in, &c.out)
				g.counters[key] = &c
				return err
			},
		},
		statement{
			text: keyed("chain, store, type", "SELECT n.store, n.type, n.last FROM k JOIN numbers n ON n.chain = k.chain AND n.store = k.store AND n.type = k.type"),
			rows: numbers,
			scan: func(row scanner) error {
				var key numberKey
				var last int64
				err := row.Scan(&key.store, (*string)(&key.kind), &last)
				g.numbers[key] = &number{last: last, stored: true}
				return err
			},
		},
		statement{
			text: keyed("chain, store, agent, epoch, first_seq, last_seq", `SELECT r.store, r.agent, r.epoch, r.seq, r.sha256
				FROM k JOIN resent r ON r.chain = k.chain AND r.store = k.store AND r.agent = k.agent AND r.epoch = k.epoch
				AND r.seq BETWEEN k.first_seq AND k.last_seq`),
			rows: resent,
			scan: func(row scanner) error {
				var key resentKey
				var seq int64
				var sha []byte
				err := row.Scan(&key.store, &key.agent, (*string)(&key.epoch), &seq, &sha)
				key.seq = uint64(seq)
				copy(key.sha256[:], sha)
				g.resent[key] = true
				return err
			},
		},
	)
	for _, n := range g.numbers {
		if !n.stored {
			n.last = floorOf(g.incarnation)
		}
	}
	return err
}

// A place is what the ledger has at a position that a stream has moved over.
type place struct {
	hash   protocol.Hash    // zero inside of a hole
	record *protocol.Record // nil in a hole, and for a duplicate whose content is not kept
	hole   bool
	day    string // of the record, or of the one before the hole
}

// at gives what stands at a position that the stream has moved over; 0 is before its first.
func (g *group) at(ctx context.Context, t tx, s *stream, seq uint64) (p place, err error) {
	if seq == 0 {
		return place{hash: protocol.Genesis(g.chain, s.key.store, s.key.agent, s.key.epoch)}, nil
	}
	i, here := slices.BinarySearchFunc(s.items, seq, func(it *item, seq uint64) int { return cmp.Compare(it.record.Seq, seq) })
	if here {
		return place{hash: s.items[i].hash, record: s.items[i].record, day: s.items[i].day}, nil
	}
	for _, h := range s.holes {
		if h.first <= seq && seq <= h.last {
			return h.at(seq), nil
		}
	}
	var hash, stored []byte
	args := []any{g.id, s.id, int64(seq)}
	own := []any{g.id, s.key.store, s.key.agent, string(s.key.epoch), int64(seq)}
	read := func() error {
		if stored == nil {
			return nil // kept by an older version
		}
		p.record = new(protocol.Record)
		return json.Unmarshal(stored, p.record)
	}
	err = t.run(ctx, false,
		statement{
			text: "SELECT hash, kind, at, mono, day, body FROM records WHERE chain = $1 AND stream = $2 AND seq = $3",
			args: args,
			scan: func(row scanner) error {
				r := &protocol.Record{Seq: seq}
				p.record = r
				if err := row.Scan(&hash, (*string)(&r.Kind), &r.At, &r.Mono, &p.day, &r.Body); err != nil {
					return err
				}
				r.Day, err = parseDay(p.day)
				return err
			},
		},
		statement{
			text: "SELECT hash, record FROM duplicates WHERE chain = $1 AND stream = $2 AND seq = $3",
			args: args,
			scan: func(row scanner) error { return errors.Join(row.Scan(&hash, &stored), read()) },
		},
		statement{
			text: "SELECT hash, record FROM quarantined WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4 AND seq = $5 AND stream <> 0",
			args: own,
			scan: func(row scanner) error { return errors.Join(row.Scan(&hash, &stored), read()) },
		},
		statement{
			text: "SELECT first_seq, last_seq, hash, day FROM holes WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4 AND first_seq <= $5 AND last_seq >= $5 AND length(hash) > 0",
			args: own,
			scan: func(row scanner) error {
				h, err := scanHole(row)
				p = h.at(seq)
				hash = p.hash[:]
				return err
			},
		},
	)
	if err == nil && len(hash) != len(p.hash) {
		err = fmt.Errorf("%s/%s/%d: %w", s.key.agent, s.key.epoch, seq, errNoRecord)
	}
	copy(p.hash[:], hash)
	if p.record != nil {
		p.day = p.record.Day.String()
	}
	return p, err
}

// hashAt is at's hash alone.
func (g *group) hashAt(ctx context.Context, t tx, s *stream, seq uint64) (protocol.Hash, error) {
	if seq == s.through {
		return s.hash, nil
	}
	p, err := g.at(ctx, t, s, seq)
	return p.hash, err
}

// parseDay reads a stored day; "" is the zero Day.
func parseDay(s string) (protocol.Day, error) {
	if s == "" {
		return protocol.Day{}, nil
	}
	return protocol.ParseDay(s)
}
