package ledger

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// Changes are what a group is going to write, in the columns' order of its statements.
type changes struct {
	records, sales, keys          *rows
	duplicates, quarantined       *rows
	resent, voids, voided, alarms *rows
	marks                         *rows
	lost                          map[holeKey]loss
	quarantining                  map[quarantineKey]int64 // the stream of each row in quarantined
	sums                          sums
	devices                       map[deviceKey]*protocol.DeviceState // newest by position
	drawers                       map[deviceKey]*protocol.DrawerEvent
	spans                         map[spanKey]*span
}

type deviceKey struct{ store, device string }

type spanKey struct{ store, day string }

type span struct{ first, last int64 }

const (
	recordColumns = "chain, pos, stream, seq, store, kind, at, mono, day, received, hash, key, body, was"
	recordTypes   = "iiiitttitibbbb"
	salesTypes    = recordTypes + "ttii"
)

func newChanges() changes {
	return changes{
		records:     newRows(recordTypes),
		sales:       newRows(salesTypes),
		keys:        newRows("itttii"),
		duplicates:  newRows("iiibtb"),
		quarantined: newRows("iiiittttttt" + "ibbt"),
		resent:      newRows("itttib"),
		voids:       newRows("itttii"),
		voided:      newRows("ii"),
		alarms:      newRows("itttti"),
		marks:       newRows("ittttitibbb"),
		lost:        map[holeKey]loss{},

		quarantining: map[quarantineKey]int64{},
		sums:         newSums(),
		devices:      map[deviceKey]*protocol.DeviceState{},
		drawers:      map[deviceKey]*protocol.DrawerEvent{},
		spans:        map[spanKey]*span{},
	}
}

// span notes that the record at the head belongs to a day.
func (g *group) span(store, day string) {
	if s := g.spans[spanKey{store, day}]; s != nil {
		s.last = g.head
	} else if day != "" {
		g.spans[spanKey{store, day}] = &span{g.head, g.head}
	}
}

var kpiUpsert = insert("kpis", "chain, store, day, currency, version, "+kpiColumns,
	"ON CONFLICT (chain, store, day, currency) DO UPDATE SET version = excluded.version"+added("kpis", kpiColumns))

// added makes ", c = table.c + excluded.c" for each column.
func added(table, columns string) string {
	var b strings.Builder
	for _, c := range strings.Split(columns, ", ") {
		b.WriteString(", " + c + " = " + table + "." + c + " + excluded." + c)
	}
	return b.String()
}

// write writes all changes and commits, in one round trip.
func (g *group) write(ctx context.Context, t tx, fail func(step string) error) error {
	agents, streams, numbers := newRows("itttit"), newRows("iitttibii"), newRows("itti")
	for key, a := range g.agents {
		if a.fresh {
			agents.add(g.id, key.store, key.agent, AgentActive, g.at0, "")
			g.alarm(protocol.Origin{Chain: g.chain, Store: key.store, Agent: key.agent}, AlarmUnknownAgent, unknownAgentDetail)
		}
	}
	for key, s := range g.streams {
		if s.moved {
			streams.add(g.id, s.id, key.store, key.agent, string(key.epoch), int64(s.through), s.hash[:], s.sealed, g.at0)
		}
	}
	for key, n := range g.numbers {
		if n.moved {
			numbers.add(g.id, key.store, string(key.kind), n.last)
		}
	}
	counters := newRows("itttii")
	for key, c := range g.counters {
		if c.moved {
			counters.add(g.id, key.store, key.agent, key.counter, c.in, c.out)
		}
	}
	kpis, tenders, items := g.sumRows()
	devices, drawers, spans := g.stateRows()
	statements := []statement{
		{text: "UPDATE chains SET head = $2, streams = $3, quarantined = $4 WHERE id = $1",
			args: []any{g.id, g.head, g.lastStream, g.lastQuarantined}},
		{rows: agents, text: insert("agents", "chain, store, agent, state, last_seen, version", "ON CONFLICT DO NOTHING")},
		{rows: streams, text: insert("streams", "chain, id, store, agent, epoch, through, hash, sealed, at",
			"ON CONFLICT (chain, id) DO UPDATE SET through = excluded.through, hash = excluded.hash, sealed = excluded.sealed, at = excluded.at")},
		{rows: g.records, text: insert("records", recordColumns, "")},
		{rows: g.changes.sales, text: insert("records", recordColumns+", business_day, type, number, voided", "")},
		{rows: g.keys, text: insert("business_keys", "chain, store, business_day, workstation, sequence, pos", "")},
		{rows: numbers, text: insert("numbers", "chain, store, type, last", "ON CONFLICT (chain, store, type) DO UPDATE SET last = excluded.last")},
		{rows: g.duplicates, text: insert("duplicates", "chain, stream, seq, hash, reason, record", "")},
		{rows: g.quarantined, text: insert("quarantined",
			"chain, id, stream, seq, store, agent, epoch, kind, day, cause, reason, received, hash, record, business_day", `ON CONFLICT (chain, store, agent, epoch, seq, hash) DO UPDATE SET stream = excluded.stream, cause = excluded.cause, reason = excluded.reason
			WHERE quarantined.stream = 0 AND excluded.stream <> 0`)},
		{rows: g.changes.resent, text: insert("resent", "chain, store, agent, epoch, seq, sha256", "")},
		{rows: g.changes.voids, text: insert("voids", "chain, store, business_day, workstation, sequence, pos", "")},
		{rows: g.voided, text: keyed("chain, pos", "UPDATE records SET voided = 1 FROM k WHERE records.chain = k.chain AND records.pos = k.pos")},
		{rows: counters, text: insert("counters", "chain, store, agent, counter, raw_in, raw_out",
			"ON CONFLICT (chain, store, agent, counter) DO UPDATE SET raw_in = excluded.raw_in, raw_out = excluded.raw_out")},
		{rows: kpis, text: kpiUpsert},
		{rows: tenders, text: insert("tender_days", "chain, store, day, currency, type, count, amount",
			"ON CONFLICT (chain, store, day, currency, type) DO UPDATE SET count = tender_days.count + excluded.count, amount = tender_days.amount + excluded.amount")},
		{rows: items, text: insert("item_days", "chain, store, day, currency, item, item_group, units, amount",
			"ON CONFLICT (chain, store, day, currency, item, item_group) DO UPDATE SET units = item_days.units + excluded.units, amount = item_days.amount + excluded.amount")},
		{rows: devices, text: insert("devices", "chain, store, device, driver, class, state, drawer, since, reason, hint",
			`ON CONFLICT (chain, store, device) DO UPDATE SET driver = excluded.driver, class = excluded.class, state = excluded.state,
			since = excluded.since, reason = excluded.reason, hint = excluded.hint`)},
		{rows: drawers, text: insert("devices", "chain, store, device, driver, class, state, drawer, since, reason, hint",
			"ON CONFLICT (chain, store, device) DO UPDATE SET drawer = excluded.drawer")},
		{rows: spans, text: insert("day_spans", "chain, store, day, first_pos, last_pos",
			"ON CONFLICT (chain, store, day) DO UPDATE SET last_pos = excluded.last_pos")},
		{rows: g.marks, text: insert("day_marks", "chain, store, day, agent, epoch, seq, head_epoch, head_seq, head_hash, certificate, signature", "")},
		{rows: g.holeRows(), text: holeInsert},
		{rows: g.alarms, text: alarmInsert},
	}
	if fail == nil {
		return t.run(ctx, true, statements...)
	}
	if err := t.run(ctx, false, statements...); err != nil {
		return err
	}
	if err := fail(StepWritten); err != nil {
		return err
	}
	return t.run(ctx, true)
}

func (g *group) sumRows() (kpis, tenders, items *rows) {
	kpis, tenders, items = newRows("ittti"+strings.Repeat("i", 17)), newRows("ittttii"), newRows("itttttii")
	for key, row := range g.sums.kpis {
		kpis.add(g.id, key.store, key.day, key.currency, row.Version)
		for _, v := range row.sums() {
			kpis.add(*v)
		}
	}
	for key, sum := range g.sums.tenders {
		tenders.add(g.id, key.store, key.day, key.currency, key.kind, sum.count, sum.amount)
	}
	// Neighbours in the index one after the other.
	for _, key := range slices.SortedFunc(maps.Keys(g.sums.items), compareItems) {
		sum := g.sums.items[key]
		items.add(g.id, key.store, key.day, key.currency, key.item, key.group, sum.units, sum.amount)
	}
	return kpis, tenders, items
}

func compareItems(a, b itemKey) int {
	return cmp.Or(strings.Compare(a.store, b.store), strings.Compare(a.day, b.day), strings.Compare(a.currency, b.currency),
		strings.Compare(a.item, b.item), strings.Compare(a.group, b.group))
}

func (g *group) stateRows() (devices, drawers, spans *rows) {
	devices, drawers, spans = newRows("itttttt"+"itt"), newRows("itttttt"+"itt"), newRows("ittii")
	for key, d := range g.devices {
		devices.add(g.id, key.store, key.device, storable(d.Driver), storable(d.Class), d.State, "", d.At.UnixMicro(), storable(d.Reason), storable(d.Hint))
	}
	for key, e := range g.drawers {
		drawer := "open"
		if e.Event == protocol.DrawerClosed {
			drawer = "closed"
		}
		drawers.add(g.id, key.store, key.device, "", "drawer", "", drawer, int64(0), "", "")
	}
	for key, s := range g.spans {
		spans.add(g.id, key.store, key.day, s.first, s.last)
	}
	return devices, drawers, spans
}
