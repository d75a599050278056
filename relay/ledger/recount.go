package ledger

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A Difference is a row of a table that is not what the records give.
type Difference struct {
	Table string `json:"table"`
	Key   string `json:"key"`
	Live  string `json:"live"` // what stands there; "" = no row
	Want  string `json:"want"` // what the records give; "" = no row
}

func (d Difference) String() string {
	return fmt.Sprintf("%s %s: %q, want %q", d.Table, d.Key, d.Live, d.Want)
}

// Recount computes every projection of a chain anew, from its records alone, and says where
// the live tables differ; also where positions or numbers have gaps. It reads one moment of
// the ledger, which may serve meanwhile.
func (l *Ledger) Recount(ctx context.Context, chain string) (found []Difference, err error) {
	id, err := l.chainID(ctx, chain, false)
	if err != nil || id == 0 {
		return nil, err
	}
	r := &recount{chain: chain, id: id, sums: newSums(), want: map[string]table{}, numbers: map[numberKey]int64{}, devices: map[deviceKey]*DeviceRow{}}
	for name := range projections {
		r.want[name] = table{}
	}
	err = l.inSnapshot(ctx, func(q querier) error {
		r.q = q
		return r.run(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("recount chain %s: %w", chain, err)
	}
	return r.found, nil
}

// A table is its rows' values by their keys, as text.
type table map[string]string

// projections are the tables that the records give, with the columns of key and value.
var projections = map[string]struct{ key, value, where string }{
	"kpis":        {"store, day, currency", "version, " + kpiColumns, ""},
	"tender_days": {"store, day, currency, type", "count, amount", "(count <> 0 OR amount <> 0)"},
	"item_days":   {"store, day, currency, item, item_group", "units, amount", "(units <> 0 OR amount <> 0)"},
	"voids":       {"store, business_day, workstation, sequence", "pos", ""},
	"day_spans":   {"store, day", "first_pos, last_pos", ""},
	"devices":     {"store, device", "driver, class, state, drawer, since, reason, hint", ""},
	"day_marks":   {"store, day, agent, epoch, seq", "head_epoch, head_seq, head_hash, certificate, signature", ""},
}

// words joins values to a row's text.
func words(values ...any) string {
	s := make([]string, len(values))
	for i, v := range values {
		if b, ok := v.([]byte); ok {
			v = hex.EncodeToString(b)
		}
		s[i] = fmt.Sprint(v)
	}
	return strings.Join(s, "|")
}

// A storedRow is a record with what the ledger knows of it.
type storedRow struct {
	StoredRecord
	mono   int64
	voided bool
	it     *item // nil for a seal
}

// replay calls with each record of a chain, in order.
func replay(ctx context.Context, q querier, chain string, id int64, with func(*storedRow) error) error {
	rows, err := q.QueryContext(ctx, "SELECT r.mono, coalesce(r.voided, 0), "+storedColumns+` FROM records r
		JOIN streams s ON s.chain = r.chain AND s.id = r.stream WHERE r.chain = $1 ORDER BY r.pos`, id)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var r storedRow
		var voided int64
		if err := scanStored(prepended{rows, []any{&r.mono, &voided}}, &r.StoredRecord); err != nil {
			return err
		}
		r.voided = voided != 0
		if r.Kind != protocol.KindSeal {
			r.it = &item{record: &protocol.Record{Seq: r.Seq, Kind: r.Kind, At: r.At, Mono: r.mono, Day: r.Day, Body: r.Body, Was: r.Was}, day: r.Day.String()}
			if err := r.it.body(protocol.Origin{Chain: chain, Store: r.Store, Agent: r.Agent}); err != nil {
				return fmt.Errorf("record %d: %w", r.Pos, err)
			}
		}
		if err := with(&r); err != nil {
			return err
		}
	}
	return rows.Err()
}

// prepended scans more columns first.
type prepended struct {
	scanner
	first []any
}

func (p prepended) Scan(dest ...any) error { return p.scanner.Scan(append(p.first, dest...)...) }

// A recount replays the records into tables of its own.
type recount struct {
	chain   string
	id      int64
	q       querier
	sums    sums
	want    map[string]table
	voids   map[saleKey]int64 // by victim: position of its first void
	numbers map[numberKey]int64
	devices map[deviceKey]*DeviceRow
	spans   map[spanKey]*span
	keys    multiset // business keys and their positions
	pos     int64
	found   []Difference
}

func (r *recount) run(ctx context.Context) error {
	var err error
	if r.voids, err = voidsOf(ctx, r.q, r.id); err != nil {
		return err
	}
	r.spans = map[spanKey]*span{}
	if err := replay(ctx, r.q, r.chain, r.id, r.record); err != nil {
		return err
	}
	for victim, pos := range r.voids {
		r.want["voids"][words(victim.store, victim.day, victim.workstation, victim.sequence)] = words(pos)
	}
	for key, s := range r.spans {
		r.want["day_spans"][words(key.store, key.day)] = words(s.first, s.last)
	}
	for key, d := range r.devices {
		r.want["devices"][words(key.store, key.device)] = words(d.Driver, d.Class, d.State, d.Drawer, d.Since.UnixMicro(), d.Reason, d.Hint)
	}
	r.add()
	if err := r.counters(ctx); err != nil {
		return err
	}
	for name, columns := range projections {
		live, err := liveTable(ctx, r.q, name, columns.key, columns.value, columns.where, r.id)
		if err != nil {
			return err
		}
		r.compare(name, live)
	}
	if err := r.businessKeys(ctx); err != nil {
		return err
	}
	slices.SortFunc(r.found, func(a, b Difference) int {
		return cmp.Or(strings.Compare(a.Table, b.Table), strings.Compare(a.Key, b.Key))
	})
	return nil
}

// voidsOf gives the first void of each transaction that one names.
func voidsOf(ctx context.Context, q querier, id int64) (map[saleKey]int64, error) {
	rows, err := q.QueryContext(ctx, "SELECT pos, body FROM records WHERE chain = $1 AND type = $2 ORDER BY pos", id, string(protocol.TypeVoid))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	voids := map[saleKey]int64{}
	for rows.Next() {
		var pos int64
		var body []byte
		if err := rows.Scan(&pos, &body); err != nil {
			return nil, err
		}
		t, err := readTransaction(body)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", pos, err)
		}
		if victim := newSale(t).voids; victim != nil && voids[*victim] == 0 {
			voids[*victim] = pos
		}
	}
	return voids, rows.Err()
}

func (r *recount) record(row *storedRow) error {
	if !follows(r.pos, row.Pos) {
		r.differs("records", words(row.Pos), fmt.Sprintf("follows %d", r.pos), "no gap")
	}
	r.pos = row.Pos
	r.span(row.Store, row.Day.String())
	it := row.it
	switch {
	case it == nil:
	case it.sale != nil:
		r.sale(row)
	case it.footfall != nil:
		r.sums.footfall(row.Store, it.day, it.footfall, row.Pos)
	case it.drawer != nil:
		r.sums.drawer(row.Store, it.day, it.drawer, row.Pos)
		changeDrawer(r.devices, row.Store, it.drawer)
	case it.device != nil:
		changeDevice(r.devices, row.Store, it.device)
	case it.mark != nil:
		m := it.mark
		r.want["day_marks"][words(row.Store, m.Day, row.Agent, row.Epoch, row.Seq)] = words(m.Head.Epoch, m.Head.Through, m.Head.Hash[:], m.Certificate[:], m.Signature)
	}
	return nil
}

// follows says whether a position or number may stand behind another: the next, or the first
// of a later incarnation.
func follows(before, n int64) bool {
	return n == before+1 || (n > before && n%step == 1)
}

func (r *recount) sale(row *storedRow) {
	sale := row.it.sale
	r.keys.add(words(sale.key.store, sale.key.day, sale.key.workstation, sale.key.sequence, row.Pos))
	r.span(row.Store, sale.key.day)
	of := numberKey{row.Store, sale.kind}
	if !follows(r.numbers[of], row.Number) {
		r.differs("numbers", words(row.Store, sale.kind, row.Pos), fmt.Sprintf("%d follows %d", row.Number, r.numbers[of]), "no gap")
	}
	r.numbers[of] = row.Number
	void, voided := r.voids[sale.key]
	if row.voided != voided {
		r.differs("records", words(row.Pos), fmt.Sprintf("voided %v", row.voided), fmt.Sprintf("voided %v", voided))
	}
	if sale.share == nil {
		return
	}
	// A voided transaction adds nothing, but its row tells of the void.
	times := int64(1)
	if voided {
		times = 0
	}
	r.sums.transaction(sale.key, sale.share, times, max(row.Pos, void))
}

// add turns the sums into tables.
func (r *recount) add() {
	for key, row := range r.sums.kpis {
		values := []any{row.Version}
		for _, v := range row.sums() {
			values = append(values, *v)
		}
		r.want["kpis"][words(key.store, key.day, key.currency)] = words(values...)
	}
	for key, sum := range r.sums.tenders {
		if *sum != (tenderShare{}) {
			r.want["tender_days"][words(key.store, key.day, key.currency, key.kind)] = words(sum.count, sum.amount)
		}
	}
	for key, sum := range r.sums.items {
		if *sum != (itemShare{}) {
			r.want["item_days"][words(key.store, key.day, key.currency, key.item, key.group)] = words(sum.units, sum.amount)
		}
	}
}

// counters compares what was handed out last.
func (r *recount) counters(ctx context.Context) error {
	// A raise moves them on before anything is handed out.
	stands := func(live, last int64) bool { return live == last || (live > last && live%step == 0) }
	var head int64
	if err := r.q.QueryRowContext(ctx, "SELECT head FROM chains WHERE id = $1", r.id).Scan(&head); err != nil {
		return err
	}
	if !stands(head, r.pos) {
		r.differs("chains", "head", words(head), words(r.pos))
	}
	rows, err := r.q.QueryContext(ctx, "SELECT store, type, last FROM numbers WHERE chain = $1", r.id)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var key numberKey
		var last int64
		if err := rows.Scan(&key.store, (*string)(&key.kind), &last); err != nil {
			return err
		}
		if !stands(last, r.numbers[key]) {
			r.differs("numbers", words(key.store, key.kind), words(last), words(r.numbers[key]))
		}
		delete(r.numbers, key)
	}
	for key, last := range r.numbers {
		r.differs("numbers", words(key.store, key.kind), "", words(last))
	}
	return rows.Err()
}

// businessKeys compares a table that may have as many rows as the log, without holding it.
func (r *recount) businessKeys(ctx context.Context) error {
	rows, err := r.q.QueryContext(ctx, "SELECT store, business_day, workstation, sequence, pos FROM business_keys WHERE chain = $1", r.id)
	if err != nil {
		return err
	}
	defer rows.Close()
	var live multiset
	for rows.Next() {
		var key saleKey
		var pos int64
		if err := rows.Scan(&key.store, &key.day, &key.workstation, &key.sequence, &pos); err != nil {
			return err
		}
		live.add(words(key.store, key.day, key.workstation, key.sequence, pos))
	}
	if live != r.keys {
		r.differs("business_keys", "all", fmt.Sprintf("%d keys, %s", live.n, live.hash()), fmt.Sprintf("%d keys, %s", r.keys.n, r.keys.hash()))
	}
	return rows.Err()
}

func (r *recount) span(store, day string) {
	if s := r.spans[spanKey{store, day}]; s != nil {
		s.last = r.pos
	} else if day != "" {
		r.spans[spanKey{store, day}] = &span{r.pos, r.pos}
	}
}

func changeDevice(devices map[deviceKey]*DeviceRow, store string, s *protocol.DeviceState) {
	d := devices[deviceKey{store, s.Device}]
	if d == nil {
		d = &DeviceRow{}
		devices[deviceKey{store, s.Device}] = d
	}
	d.Driver, d.Class, d.State, d.Since, d.Reason, d.Hint = storable(s.Driver), storable(s.Class), s.State, s.At, storable(s.Reason), storable(s.Hint)
}

func changeDrawer(devices map[deviceKey]*DeviceRow, store string, e *protocol.DrawerEvent) {
	if e.Event == protocol.DrawerOpenFailed {
		return
	}
	d := devices[deviceKey{store, e.Drawer}]
	if d == nil {
		d = &DeviceRow{Class: "drawer", Since: time.UnixMicro(0)}
		devices[deviceKey{store, e.Drawer}] = d
	}
	d.Drawer = "open"
	if e.Event == protocol.DrawerClosed {
		d.Drawer = "closed"
	}
}

func (r *recount) differs(table, key, live, want string) {
	r.found = append(r.found, Difference{table, key, live, want})
}

func (r *recount) compare(name string, live table) {
	want := r.want[name]
	for key, value := range live {
		if want[key] != value {
			r.differs(name, key, value, want[key])
		}
	}
	for key, value := range want {
		if _, ok := live[key]; !ok {
			r.differs(name, key, "", value)
		}
	}
}

// liveTable reads a chain's rows of a table.
func liveTable(ctx context.Context, q querier, name, key, value, where string, id int64) (table, error) {
	query := "SELECT " + key + ", " + value + " FROM " + name + " WHERE chain = $1"
	if where != "" {
		query += " AND " + where
	}
	rows, err := q.QueryContext(ctx, query, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	n := 1 + strings.Count(key, ",")
	width := n + 1 + strings.Count(value, ",")
	found := table{}
	for rows.Next() {
		values, dest := make([]any, width), make([]any, width)
		for i := range values {
			dest[i] = &values[i]
		}
		if err := rows.Scan(dest...); err != nil {
			return nil, err
		}
		found[words(values[:n]...)] = words(values[n:]...)
	}
	return found, rows.Err()
}
