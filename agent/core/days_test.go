package core

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/drivers/till"
	"github.com/storelay/storelay/protocol"
)

// A desk is an agent whose journal runs, without devices, listener and link, at a time that
// the test sets.
type desk struct {
	*Agent
	t     *testing.T
	now   time.Time
	mono  time.Duration
	boots int
	dir   string
	stop  func()
}

func newDesk(t *testing.T, at time.Time) *desk {
	d := &desk{t: t, now: at, dir: t.TempDir()}
	identityFor(t, filepath.Join(d.dir, "identity"))
	d.start()
	t.Cleanup(func() { d.stop() })
	return d
}

func (d *desk) start() {
	d.t.Helper()
	var err error
	d.Agent, err = New(Config{Data: d.dir, Identity: filepath.Join(d.dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Zone: "Europe/Stockholm", CutOff: "04:00"},
		Options{Version: "test", Log: slog.New(slog.DiscardHandler), Inline: true, Now: func() time.Time { return d.now }, Mono: func() time.Duration { return d.mono }, BootID: fmt.Sprint(d.boots)})
	if err != nil {
		d.t.Fatal(err)
	}
	agent := d.Agent
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- agent.journal.Run(ctx) }()
	d.stop = func() {
		cancel()
		if err := <-ran; err != nil {
			d.t.Error(err)
		}
		if err := agent.Close(); err != nil {
			d.t.Error(err)
		}
		d.stop = func() {}
	}
}

func (d *desk) rollOver() time.Time {
	d.t.Helper()
	next, err := d.RollOver(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return next
}

// marks reads all day marks of the journal and checks each one's signature and place.
func (d *desk) marks() []string {
	d.t.Helper()
	cert, err := x509.ParseCertificate(d.signer.cert)
	if err != nil {
		d.t.Fatal(err)
	}
	// Records are readable a moment after they were accepted.
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, newest := d.journal.Heads()
		if s := d.journal.Stats(); newest.Seq == s.LastSeq || time.Now().After(limit) {
			break
		}
	}
	var days []string
	for at, _ := d.journal.Heads(); ; {
		b, err := d.journal.Read(at, 1, 1<<20)
		if err != nil {
			d.t.Fatal(err)
		}
		if len(b.Records) == 0 {
			next := d.journal.Next(protocol.Position{Epoch: at.Epoch, Seq: at.Seq - 1})
			if next == at || at.Seq == 1 {
				return days
			}
			at = next
			continue
		}
		if r := b.Records[0]; r.Kind == protocol.KindDayMark {
			m, err := protocol.DecodeDayMark(r.Body)
			if err != nil {
				d.t.Fatal(err)
			}
			if err := m.Verify(d.origin, cert); err != nil {
				d.t.Errorf("mark of %s: %v", m.Day, err)
			}
			if want := (protocol.Mark{Epoch: b.Epoch, Through: r.Seq - 1, Hash: b.Prev}); m.Head != want || r.Day != m.Day {
				d.t.Errorf("mark of %s (record of %s) is behind %v, want %v", m.Day, r.Day, m.Head, want)
			}
			days = append(days, m.Day.String())
		}
		at = d.journal.Next(protocol.Position{Epoch: at.Epoch, Seq: at.Seq})
	}
}

func TestADayIsMarkedWhenItEndsAtTheStoresCutOff(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	if next := d.rollOver(); !next.Equal(time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)) {
		t.Errorf("the day ends at %s, want 04:00 in Stockholm", next)
	}
	d.now = time.Date(2026, 11, 23, 2, 59, 59, 0, time.UTC)
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-21"}; !slices.Equal(got, want) {
		t.Errorf("before the cut-off %v, want %v", got, want)
	}
	d.now = d.now.Add(time.Second)
	d.rollOver()
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-21", "2026-11-22"}; !slices.Equal(got, want) {
		t.Errorf("after it %v, want %v", got, want)
	}
}

func TestEachMissedDayIsMarkedAtTheNextStart(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC))
	d.rollOver()
	d.stop()
	d.now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	d.start()
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-19", "2026-11-20", "2026-11-21", "2026-11-22"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestYearsInADrawerMakeOneMark(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC))
	d.rollOver()
	d.now = d.now.AddDate(5, 0, 0)
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-19", "2031-11-19"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNoDayEndsWhileTheClockIsDoubted(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC))
	d.rollOver()
	d.heardTime(d.now)
	d.now = d.now.AddDate(0, 0, 2) // 48 h ahead in no time
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-19"}; !slices.Equal(got, want) {
		t.Errorf("with a clock that jumped: %v, want %v", got, want)
	}
	d.mono = 48 * time.Hour // now it is true
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-19", "2026-11-19", "2026-11-20", "2026-11-21"}; !slices.Equal(got, want) {
		t.Errorf("when the days have passed: %v, want %v", got, want)
	}
}

// sell accepts a sale of a day.
func (d *desk) sell(day protocol.Day, number int64) {
	d.t.Helper()
	in := till.Intake{Transaction: protocol.Transaction{BusinessDay: day}, Body: fmt.Appendf(nil, `{"n":%d}`, number), Keys: []string{fmt.Sprint(number)}}
	if _, err := d.Accept(d.t.Context(), in); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) reboot(at time.Time) {
	d.t.Helper()
	d.stop()
	d.boots, d.mono, d.now = d.boots+1, time.Minute, at
	d.start()
}

func TestADayIsMarkedWhenItHasEndedByTheRelaysClockToo(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)) // two hours ahead
	d.heardTime(d.now.Add(-2 * time.Hour))
	d.rollOver()
	pass := func(by time.Duration) { d.now, d.mono = d.now.Add(by), d.mono+by }
	pass(15*time.Hour + 2*time.Hour + 4*time.Minute)
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-21"}; !slices.Equal(got, want) {
		t.Errorf("four minutes after the relay's cut-off %v, want %v", got, want)
	}
	pass(time.Minute)
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-21", "2026-11-22"}; !slices.Equal(got, want) {
		t.Errorf("five minutes after %v, want %v", got, want)
	}
}

// The PC boots ten days ahead, and its clock is set right: what was marked then is marked anew
// when it has ended, whatever was marked before.
func TestDaysMarkedByAClockThatWasAheadAreMarkedAnew(t *testing.T) {
	right := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	days := func(from, to int) (all []string) {
		for i := from; i <= to; i++ {
			all = append(all, protocol.Day{Year: 2026, Month: 11, Date: 1}.AddDays(i-1).String())
		}
		return all
	}
	t.Run("on a later boot", func(t *testing.T) {
		d := newDesk(t, right.AddDate(0, 0, -1))
		d.heardTime(d.now)
		d.rollOver() // 18
		d.reboot(right.AddDate(0, 0, 10))
		d.rollOver() // 19..29
		d.now = right
		d.rollOver() // 19
		d.now = right.AddDate(0, 0, 1)
		d.rollOver() // 20
		d.rollOver()
		if got, want := d.marks(), slices.Concat(days(18, 29), days(19, 20)); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	t.Run("and set right while the PC is off", func(t *testing.T) {
		d := newDesk(t, right.AddDate(0, 0, -1))
		d.heardTime(d.now)
		d.rollOver() // 18
		d.reboot(right.AddDate(0, 0, 1))
		d.rollOver() // 19, 20
		d.reboot(right.AddDate(0, 0, 2))
		d.rollOver() // 21: that the clock was ahead does not show
		d.heardTime(d.now)
		d.rollOver() // 19..21
		d.rollOver()
		if got, want := d.marks(), slices.Concat(days(18, 21), days(19, 21)); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	t.Run("on the first boot", func(t *testing.T) {
		d := newDesk(t, right.AddDate(0, 0, 10))
		d.rollOver()
		d.reboot(right)
		d.rollOver()
		if got := d.marks(); len(got) != 1+maxEarly || got[0] != "2026-11-29" || got[1] != "2026-10-20" || got[maxEarly] != "2026-11-19" {
			t.Errorf("got %v, want the false day and the last %d", got, maxEarly)
		}
		d.now = right.AddDate(0, 0, 1)
		d.rollOver()
		if got := d.marks(); len(got) != 2+maxEarly || got[1+maxEarly] != "2026-11-20" {
			t.Errorf("the day after: %v, want the day's mark too", got)
		}
	})
	t.Run("by an older version", func(t *testing.T) {
		d := newDesk(t, right)
		if _, err := d.journal.Append(t.Context(), journal.Entry{Kind: protocol.KindDevice, Body: []byte("{}"), StateKey: dayKey, State: []byte("2026-11-29")}); err != nil {
			t.Fatal(err)
		}
		d.rollOver()
		if got := d.marks(); len(got) != maxEarly || got[maxEarly-1] != "2026-11-19" {
			t.Errorf("got %v, want the last %d", got, maxEarly)
		}
	})
}

func TestAClockThatIsBehindMarksNothingAnew(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 20, 5, 0, 0, 0, time.UTC))
	d.heardTime(d.now)
	d.rollOver()
	d.reboot(time.Date(2026, 11, 19, 23, 0, 0, 0, time.UTC))
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-19"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestADayIsMarkedAgainBehindWhatWasAcceptedLate(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC))
	nineteenth := protocol.Day{Year: 2026, Month: 11, Date: 19}
	d.rollOver()
	d.sell(nineteenth.AddDays(1), 1) // of the day under way
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-19"}; !slices.Equal(got, want) {
		t.Errorf("after a sale of the day under way %v, want %v", got, want)
	}
	d.sell(nineteenth, 2)
	d.sell(nineteenth, 2) // again
	d.reboot(d.now)       // is not forgotten
	d.rollOver()
	d.sell(nineteenth, 3)
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-19", "2026-11-19"}; !slices.Equal(got, want) {
		t.Errorf("after late sales %v, want one more mark, and not a second within the hour", got)
	}
	d.sell(nineteenth, 2) // known
	d.mono += time.Hour
	d.rollOver()
	d.mono += time.Hour
	d.rollOver()
	d.sell(nineteenth, 3) // known
	d.rollOver()
	if got, want := d.marks(), []string{"2026-11-19", "2026-11-19", "2026-11-19"}; !slices.Equal(got, want) {
		t.Errorf("an hour later %v, want one more, and none for what is known", got)
	}
}

func TestTheJournalOfAFormerAgentIsSetAside(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC))
	d.rollOver()
	d.stop()
	identityOf(t, filepath.Join(d.dir, "identity"), protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-2"})
	err := setAside(d.dir, protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-2"}, func() time.Time { return d.now }, slog.New(slog.DiscardHandler))
	aside := folders(d.dir)
	if err != nil || len(aside) != 1 || !strings.Contains(aside[0], "0001-pc-1") {
		t.Fatalf("set aside %v, %v; want the journal of pc-1", aside, err)
	}
	d.start()
	if s := d.journal.Stats(); s.Waiting != 0 {
		t.Errorf("the new agent begins with %d records", s.Waiting)
	}
	if _, err := os.Stat(filepath.Join(aside[0], "index")); err != nil {
		t.Errorf("what was set aside is not whole: %v", err)
	}
}

// A folder that was drained is shown again when the ledger has been restored since: it may lack
// what was delivered, and nobody else holds it.
func TestADrainedFolderWaitsAgainAfterARestore(t *testing.T) {
	data := t.TempDir()
	dir := AsideFolder(data, protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"}, time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	why := func(incarnation int64) string {
		t.Helper()
		list := asideOf(data, incarnation)
		if len(list) == 0 {
			return ""
		}
		if len(list) > 1 || !strings.HasPrefix(list[0].Folder, dir) {
			t.Fatalf("set aside %+v, want the one folder", list)
		}
		return list[0].Why
	}
	if got := why(0); !strings.Contains(got, "never delivered") {
		t.Errorf("before a drain: %q", got)
	}
	for _, incarnation := range []int64{1, 1, 3} { // a drain that finds nothing new changes nothing
		if err := Drained(folders(data)[0], incarnation); err != nil {
			t.Fatal(err)
		}
		if got := why(incarnation); got != "" {
			t.Errorf("drained at %d: %q, want nothing", incarnation, got)
		}
		if got := why(incarnation + 1); !strings.Contains(got, fmt.Sprintf("incarnation %d of the ledger, which was restored since", incarnation)) {
			t.Errorf("restored after it was drained at %d: %q", incarnation, got)
		}
	}
	if err := os.Rename(folders(data)[0], dir+".drained"); err != nil { // it does not say when
		t.Fatal(err)
	}
	if got := why(1); got == "" {
		t.Error("a folder that was drained nobody knows when does not wait, want it once more: that is always safe")
	}
}

func TestAFormerJournalShowsNoAck(t *testing.T) {
	d := newDesk(t, time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC))
	d.rollOver()
	source := Former(d.journal, d.origin)
	oldest, _ := source.Heads()
	for ; oldest.Seq == 0; oldest, _ = source.Heads() {
		<-source.Wake() // the index comes behind
	}
	batch, err := source.Read(oldest, 10, 1<<20)
	if err != nil || batch.Of == nil || *batch.Of != d.origin || len(batch.Records) == 0 {
		t.Fatalf("batch %+v, %v, want records of %s", batch, err, d.origin)
	}
	mark := protocol.Mark{Epoch: batch.Epoch, Through: batch.Last(), Hash: batch.Prev}
	for _, r := range batch.Records {
		mark.Hash = r.Hash(mark.Hash)
	}
	if err := source.Acked(mark, 3); err != nil {
		t.Fatal(err)
	}
	if oldest, _ := source.Heads(); oldest.Seq != 0 {
		t.Errorf("%s waits, want nothing", oldest)
	}
	// The ledger holds these records beside its streams: a mark in the hello would look like
	// one of a ledger that has been restored.
	if last, incarnation := source.LastAck(); last != nil || incarnation != 3 {
		t.Errorf("last ack %+v of incarnation %d, want none of 3", last, incarnation)
	}
}
