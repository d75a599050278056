package ledger

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/storelay/storelay/protocol"
)

// Why a record is in quarantine: a relay that knows more may apply causeKind by itself.
const (
	causeKind     = "kind"     // this relay does not know the kind
	causeBody     = "body"     // a field is wrong
	causeBusiness = "business" // the business key is taken by other content
	causeCounted  = "counted"  // people in a count were counted before
	causeWas      = "was"      // the first position named is not this record's
	causeDatabase = "database" // the database refuses the row
	causeRaw      = "raw"      // not a record at all
	causeDrained  = "drained"  // another agent delivered it
	causeHole     = "hole"     // it came after it was said to be lost
)

// An item is a record made ready, outside of any lock, for its commit.
type item struct {
	record *protocol.Record
	day    string
	hash   protocol.Hash // of the stream through this record

	cause, reason string // why it cannot be applied; "" = it can

	// What the body says, by kind.
	sale     *sale
	footfall *protocol.FootfallCount
	drawer   *protocol.DrawerEvent
	device   *protocol.DeviceState
	mark     *protocol.DayMark
	loss     *protocol.Loss
}

// A sale is what the ledger needs to know of a transaction.
type sale struct {
	key   saleKey
	kind  protocol.TransactionType
	voids *saleKey
	share *share // nil = counts nowhere: training, a control transaction, or a void
}

// A saleKey is a transaction's business key.
type saleKey struct {
	store, day, workstation string
	sequence                int64
}

func (k saleKey) String() string {
	return fmt.Sprintf("%s/%s/%s/%d", k.store, k.workstation, k.day, k.sequence)
}

// newJob reads a batch. Whatever is wrong with it is in the job.
func newJob(from protocol.Origin, batch *protocol.Batch) *job {
	j := &job{from: from, of: batch.Of, epoch: batch.Epoch, first: batch.First, prev: batch.Prev, skip: batch.Skip, done: make(chan struct{})}
	records := batch.Records
	if j.refuse = j.misdirected(); j.refuse != "" {
		return j
	}
	if batch.Raw != nil {
		var r protocol.Record
		err := json.Unmarshal(batch.Raw, &r)
		if err == nil && r.Seq != batch.First {
			err = fmt.Errorf("seq: want %d, got %d", batch.First, r.Seq)
		}
		if err == nil && len(r.Body) == 0 {
			err = fmt.Errorf("body: missing")
		}
		switch {
		case err == nil:
			records, j.skip = []protocol.Record{r}, nil
		case j.skip == nil || j.of != nil || j.skip.To != batch.First:
			j.refuse, j.raw, j.unread = fmt.Sprintf("record %d of epoch %s cannot be read: %v", batch.First, batch.Epoch, err), batch.Raw, err.Error()
			return j
		default: // a hole, beside which the record is kept as it came
			j.raw, j.unread = batch.Raw, err.Error()
		}
	}
	switch {
	case !batch.Epoch.Valid():
		j.refuse = fmt.Sprintf("epoch: want 32 hex digits, got %q", batch.Epoch)
	case batch.First == 0 || batch.First > math.MaxInt64-protocol.MaxRecords:
		j.refuse = fmt.Sprintf("first: out of range: %d", batch.First)
	case (len(records) == 0 && j.skip == nil) || len(records) > protocol.MaxRecords:
		j.refuse = fmt.Sprintf("records: want 1 to %d, got %d", protocol.MaxRecords, len(records))
	case j.skip != nil && (j.skip.From != j.first || j.skip.To < j.skip.From || j.skip.To > 1<<62):
		j.refuse = fmt.Sprintf("skip: %d to %d is no stretch that begins at first, %d", j.skip.From, j.skip.To, j.first)
	}
	if j.refuse != "" {
		return j
	}
	hash := batch.Prev
	if j.skip != nil {
		hash = j.skip.Hash
	}
	all := make([]item, len(records))
	j.items = make([]*item, len(records))
	for i := range records {
		r := &records[i]
		if want := j.begin() + uint64(i); r.Seq != want {
			j.refuse = fmt.Sprintf("records[%d].seq: want %d, got %d", i, want, r.Seq)
			return j
		}
		hash = r.Hash(hash)
		all[i] = item{record: r, hash: hash, day: r.Day.String()}
		all[i].read(j.whose())
		j.items[i] = &all[i]
	}
	if batch.First == 1 && j.of == nil {
		j.refuse = j.readSeal()
	}
	return j
}

// misdirected says why the batch cannot be taken from this agent.
func (j *job) misdirected() (refuse string) {
	switch of := j.of; {
	case of == nil && j.epoch == asideEpoch(j.from):
		return fmt.Sprintf("epoch: %s is the ledger's own", j.epoch)
	case of == nil:
	case checkOrigin(*of) != nil || of.Chain != j.from.Chain:
		return fmt.Sprintf("of: %s is no agent of chain %s", of, j.from.Chain)
	case *of == j.from:
		return "of: an agent delivers its own records under its own name"
	}
	return ""
}

func (j *job) readSeal() (refuse string) {
	if j.skip != nil {
		return j.sealedBy(j.skip.Seal)
	}
	first := j.items[0]
	if first.record.Kind != protocol.KindSeal {
		return fmt.Sprintf("epoch %s begins with a %s, not with a seal", j.epoch, first.record.Kind)
	}
	seal, err := protocol.DecodeSeal(first.record.Body)
	if err != nil {
		return fmt.Sprintf("seal of epoch %s: %v", j.epoch, err)
	}
	return j.sealedBy(&seal)
}

// sealedBy takes the seal that begins the epoch; nil = it is lost.
func (j *job) sealedBy(seal *protocol.Seal) (refuse string) {
	if seal != nil && seal.Before != nil && (!seal.Before.Epoch.Valid() || seal.Before.Epoch == j.epoch || seal.Before.Through > math.MaxInt64) {
		return fmt.Sprintf("seal of epoch %s: before: %s/%d cannot be the end of another epoch", j.epoch, seal.Before.Epoch, seal.Before.Through)
	}
	j.seal = seal
	return ""
}

// read decodes the body and notes what is wrong with it.
func (it *item) read(from protocol.Origin) {
	r := it.record
	if err := it.body(from); err != nil {
		it.cause, it.reason = causeBody, err.Error()
		return
	}
	if it.cause == "" && r.Time().IsZero() {
		it.cause, it.reason = causeBody, fmt.Sprintf("at: %q is not RFC 3339 with offset", r.At)
	}
	if r.Was != nil && it.cause == "" {
		if !r.Was.Epoch.Valid() || r.Was.Seq == 0 || r.Was.Seq > math.MaxInt64 {
			it.cause, it.reason = causeWas, fmt.Sprintf("was: %s/%d is not a position", r.Was.Epoch, r.Was.Seq)
		} else if r.Was.SHA256 != r.ContentHash() {
			it.cause, it.reason = causeWas, "was.sha256: is not the hash of this record's content"
		}
	}
}

func (it *item) body(from protocol.Origin) error {
	r := it.record
	switch r.Kind {
	case protocol.KindTransaction:
		t, err := readTransaction(r.Body)
		if err == nil {
			err = checkTransaction(t, from.Store)
		}
		if err != nil {
			return err
		}
		it.sale = newSale(t)
	case protocol.KindFootfall:
		var c protocol.FootfallCount
		if err := json.Unmarshal(r.Body, &c); err != nil {
			return err
		}
		if err := c.Validate(); err != nil {
			return err
		}
		it.footfall = &c
		return it.dayed()
	case protocol.KindDrawer:
		var e protocol.DrawerEvent
		if err := json.Unmarshal(r.Body, &e); err != nil {
			return err
		}
		if err := e.Validate(); err != nil {
			return err
		}
		it.drawer = &e
		return it.dayed()
	case protocol.KindCashIn: // no figure is made of it yet
		var c protocol.CashIn
		if err := json.Unmarshal(r.Body, &c); err != nil {
			return err
		}
		if err := c.Validate(); err != nil {
			return err
		}
		return it.dayed()
	case protocol.KindDevice:
		var s protocol.DeviceState
		if err := json.Unmarshal(r.Body, &s); err != nil {
			return err
		}
		if err := s.Validate(); err != nil {
			return err
		}
		it.device = &s
	case protocol.KindSeal:
		if r.Seq != 1 {
			return protocol.Faults{{Field: "kind", Problem: "a seal can only begin an epoch"}}
		}
	case protocol.KindDayMark:
		m, err := protocol.DecodeDayMark(r.Body)
		if err == nil && m.Head.Through > math.MaxInt64 {
			err = protocol.Faults{{Field: "head", Problem: "out of range"}}
		}
		if err != nil {
			return err
		}
		it.mark = &m
	case protocol.KindLoss:
		l, err := protocol.DecodeLoss(r.Body)
		if err != nil {
			return err
		}
		it.loss = &l
	default:
		it.cause, it.reason = causeKind, fmt.Sprintf("kind: %q is unknown to this relay", r.Kind)
	}
	return nil
}

// knows says whether records of a kind can be applied.
func knows(kind protocol.Kind) bool {
	switch kind {
	case protocol.KindTransaction, protocol.KindFootfall, protocol.KindDrawer, protocol.KindCashIn, protocol.KindDevice, protocol.KindSeal, protocol.KindDayMark, protocol.KindLoss:
		return true
	}
	return false
}

func (it *item) dayed() error {
	if it.day == "" {
		return protocol.Faults{{Field: "day", Problem: "missing: the record counts on no business day"}}
	}
	return nil
}

func checkTransaction(t *protocol.Transaction, store string) error {
	var faults protocol.Faults
	if t.Store != store {
		faults.Add("store", "a store's agent sends its own transactions", "want %q, where the agent is, got %q", store, t.Store)
	}
	if err := t.Validate(); err != nil {
		faults.AddAll(err)
		return faults
	}
	if v := t.Voids; v != nil && v.Store != "" && v.Store != store {
		faults.Add("voids.store", "", "want %q, got %q", store, v.Store)
	}
	return faults.Err()
}

type (
	bareTransaction protocol.Transaction
	bareLine        protocol.LineItem
	bareTender      protocol.Tender
)

// readTransaction decodes a transaction without the members that nobody knows, which is
// several times faster. A body that is wrong is decoded again to name all its faults.
func readTransaction(body []byte) (*protocol.Transaction, error) {
	var bare struct {
		bareTransaction
		Lines   []bareLine   `json:"lines"`
		Tenders []bareTender `json:"tenders"`
	}
	if err := json.Unmarshal(body, &bare); err != nil {
		t := new(protocol.Transaction)
		return t, json.Unmarshal(body, t)
	}
	t := protocol.Transaction(bare.bareTransaction)
	t.Lines = make([]protocol.LineItem, len(bare.Lines))
	for i := range bare.Lines {
		t.Lines[i] = protocol.LineItem(bare.Lines[i])
	}
	t.Tenders = make([]protocol.Tender, len(bare.Tenders))
	for i := range bare.Tenders {
		t.Tenders[i] = protocol.Tender(bare.Tenders[i])
	}
	return &t, nil
}

func newSale(t *protocol.Transaction) *sale {
	s := &sale{kind: t.Type, key: saleKey{t.Store, t.BusinessDay.String(), t.Workstation, t.Sequence}}
	switch {
	case t.Training, t.Type == protocol.TypeControl:
	case t.Type == protocol.TypeVoid:
		s.voids = &saleKey{t.Store, t.Voids.BusinessDay.String(), t.Voids.Workstation, t.Voids.Sequence}
		s.voids.workstation = storable(s.voids.workstation)
	default:
		s.share = newShare(t)
	}
	return s
}
