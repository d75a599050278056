package sim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A Schedule is all that a run is told; the same schedule gives the same run.
type Schedule struct {
	Found  string       `json:"found,omitempty"` // what a kept schedule has found
	Seed   uint64       `json:"seed"`            // of every choice that is not made here
	Start  protocol.Day `json:"start"`
	Days   int          `json:"days"`
	Gap    int          `json:"gap,omitempty"` // days of holidays before the last day
	Stores []Shop       `json:"stores"`
	Faults []Fault      `json:"faults"`
}

// A Shop is one store of a schedule.
type Shop struct {
	Zone     string `json:"zone"`
	CutOff   string `json:"cutOff"`
	Tills    int    `json:"tills"`
	Counters int    `json:"counters"`
	Sales    int    `json:"sales"`            // per till and day, about
	Always   bool   `json:"always,omitempty"` // the PC runs at night; else it is shut down
}

// A Fault is one thing that goes wrong.
type Fault struct {
	At    Span  `json:"at"` // since midnight UTC of the day before the first
	Kind  Kind  `json:"kind"`
	Store int   `json:"store"` // which shop; of no meaning for the relay
	For   Span  `json:"for,omitempty"`
	N     int64 `json:"n,omitempty"` // what it means depends on the kind
}

// A Span is a time.Duration, in JSON as text.
type Span time.Duration

// MarshalText writes 1h2m3s.
func (s Span) MarshalText() ([]byte, error) { return []byte(time.Duration(s).String()), nil }

// UnmarshalText reads 1h2m3s.
func (s *Span) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	*s = Span(d)
	return err
}

// A Kind is a kind of fault.
type Kind string

// The kinds of faults. Unless it says otherwise For is how long until the part is back.
const (
	Kill         Kind = "kill"         // the agent's process, at its disk's Nth step from then on
	Power        Kind = "power"        // the store PC's, at the disk's Nth step; what was not synced may be gone
	Restart      Kind = "restart"      // of the agent, in good order
	CrashLoop    Kind = "crashLoop"    // N starts that die
	LoseIndex    Kind = "loseIndex"    // the agent is killed and its index is deleted
	BadSync      Kind = "badSync"      // the disk's Nth sync fails
	Full         Kind = "full"         // the disk; N MiB are left
	Damage       Kind = "damage"       // N says which file and what happens to it, while the agent is down
	Spoil        Kind = "spoil"        // the same after the line was cut for so long: to what waits, mostly
	Cut          Kind = "cut"          // the line
	Silence      Kind = "silence"      // nothing passes, and nobody is told
	Storm        Kind = "storm"        // N percent are lost, doubled, late; connections break
	KillRelay    Kind = "killRelay"    // N says at which step of a commit
	Backup       Kind = "backup"       // of the relay's database
	Restore      Kind = "restore"      // of the newest backup; N=1: unnoticed, as a copied image
	Clone        Kind = "clone"        // the PC's disk is copied, and the copy runs too; again: it gets the newer copy
	Rollback     Kind = "rollback"     // an image of the PC's disk is put back after For
	Resume       Kind = "resume"       // a snapshot of the running PC goes on after For; N=1: while the line is cut; N=2: as another PC, beside it
	Reimage      Kind = "reimage"      // the PC begins with an empty disk
	Skew         Kind = "skew"         // the PC's clock is wrong by N minutes
	Battery      Kind = "battery"      // the PC boots with its clock at the beginning of its time
	Revoke       Kind = "revoke"       // the agent; after For the PC is enrolled anew and drained
	Settings     Kind = "settings"     // head office changes the business day of the store, some times within For; N says to what
	BadReceiver  Kind = "badReceiver"  // the connector's receiver; N says how
	KillDelivery Kind = "killDelivery" // the relay dies at the receiver's Nth request
)

// kinds are the faults that a seed chooses from, with their weights.
var kinds = []struct {
	kind   Kind
	weight int
}{
	{Kill, 10}, {Power, 10}, {Restart, 3}, {CrashLoop, 2}, {LoseIndex, 3}, {BadSync, 4}, {Full, 3}, {Damage, 4}, {Spoil, 4},
	{Cut, 6}, {Silence, 5}, {Storm, 10}, {KillRelay, 8}, {Backup, 5}, {Restore, 5}, {Clone, 4}, {Rollback, 4},
	{Resume, 5}, {Reimage, 1}, {Skew, 4}, {Battery, 2}, {Revoke, 2}, {Settings, 4}, {BadReceiver, 5}, {KillDelivery, 4},
}

// Generate makes the schedule of a seed.
func Generate(seed uint64) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x73696d))
	starts := []protocol.Day{
		{Year: 2031, Month: 6, Date: 3}, {Year: 2031, Month: 11, Date: 20},
		{Year: 2031, Month: 3, Date: 29},  // summer time begins in Europe on the 30th
		{Year: 2031, Month: 10, Date: 25}, // and ends on the 26th
	}
	s := Schedule{Seed: seed, Start: starts[r.IntN(len(starts))], Days: 1 + r.IntN(3)}
	if r.IntN(8) == 0 {
		s.Gap = 15 + r.IntN(3)
	}
	for range 1 + r.IntN(3) {
		s.Stores = append(s.Stores, Shop{
			Zone:   []string{"Europe/Stockholm", "Europe/Stockholm", "America/New_York", "Pacific/Auckland"}[r.IntN(4)],
			CutOff: []string{"", "02:30", "04:00"}[r.IntN(3)],
			Tills:  1 + r.IntN(2), Counters: r.IntN(3), Sales: 4 + r.IntN(10), Always: r.IntN(2) == 0,
		})
	}
	liked := kinds[r.IntN(len(kinds))].kind // each run has more of one kind
	for range 1 + r.IntN(9) {
		kind := liked
		if r.IntN(3) > 0 {
			kind = draw(r)
		}
		s.Faults = append(s.Faults, s.fault(r, kind))
		if kind == Settings && r.IntN(2) == 0 { // and what it says comes late
			storm := s.fault(r, Storm)
			storm.At, storm.Store = s.Faults[len(s.Faults)-1].At-Span(time.Minute), s.Faults[len(s.Faults)-1].Store
			s.Faults = append(s.Faults, storm)
		}
		if kind == Restore { // of something
			b := s.fault(r, Backup)
			if f := s.Faults[len(s.Faults)-1]; b.At > f.At {
				b.At = f.At - Span(r.Int64N(int64(f.At)))/4
			}
			s.Faults = append(s.Faults, b)
		}
	}
	s.sort()
	return s
}

func draw(r *rand.Rand) Kind {
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	n := r.IntN(total)
	for _, k := range kinds {
		if n -= k.weight; n < 0 {
			return k.kind
		}
	}
	return Kill
}

// fault makes one fault, mostly while its store is open.
func (s *Schedule) fault(r *rand.Rand, kind Kind) Fault {
	f := Fault{Kind: kind, Store: r.IntN(len(s.Stores))}
	day := r.IntN(s.Days)
	opens := s.opens(f.Store, day).Sub(s.begins())
	f.At = Span(opens - before + time.Duration(r.Int64N(int64(before+openFor+after-time.Minute)))).round()
	minutes := func(n int) Span { return Span(time.Duration(1+r.IntN(n)) * time.Minute) }
	f.For = minutes(15)
	switch kind {
	case Kill, Power:
		f.N = 1 + r.Int64N(12)
	case CrashLoop:
		f.N = 2 + r.Int64N(12)
	case BadSync:
		f.N = 1 + r.Int64N(3)
	case Full:
		f.N = []int64{0, 30, 60, 90}[r.IntN(4)]
	case Damage:
		f.N = r.Int64N(1 << 30)
	case Spoil:
		f.N, f.For = r.Int64N(1<<30), minutes(40)
	case Storm:
		f.N, f.For = 5+r.Int64N(35), minutes(60)
	case Cut, Silence:
		f.For = minutes(40)
		if kind == Cut && r.IntN(3) == 0 { // over night
			f.For = Span(s.opens(f.Store, day+1).Sub(s.begins())+10*time.Minute) - f.At
		}
	case KillRelay:
		f.N = r.Int64N(4)
	case Restore:
		f.N = r.Int64N(2)
	case Rollback, Resume:
		f.For = minutes(50)
		if r.IntN(3) == 0 {
			f.For = Span(s.opens(f.Store, day+1).Sub(s.begins())+10*time.Minute) - f.At
		}
		if kind == Resume {
			if f.N = r.Int64N(3); f.N == 1 { // what it does alone is soon more than what is known of it
				f.For = minutes(8)
			}
		}
	case Skew:
		f.N, f.For = r.Int64N(20*60)-10*60, minutes(120)
		if r.IntN(3) == 0 { // whole days, the agent's days then end on the wrong ones
			f.N += (r.Int64N(25) - 12) * 24 * 60
		}
	case Battery:
		f.For = minutes(60)
	case Revoke:
		f.For = minutes(40)
	case Settings:
		f.N, f.For = r.Int64N(3), Span(time.Duration(1+r.IntN(40))*time.Second)
	case BadReceiver:
		f.N, f.For = r.Int64N(6), minutes(60)
	case KillDelivery:
		f.N = 1 + r.Int64N(5)
	}
	return f
}

func (s Span) round() Span { return Span(time.Duration(s).Round(time.Millisecond)) }

func (s *Schedule) sort() {
	slices.SortStableFunc(s.Faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
}

const (
	openFor = 70 * time.Minute // of a shop, each day
	before  = 10 * time.Minute // the PC is on before that
	after   = 25 * time.Minute // and after
)

// begins is the day before the first at midnight UTC: in the east that day begins early.
func (s *Schedule) begins() time.Time {
	return time.Date(s.Start.Year, s.Start.Month, s.Start.Date-1, 0, 0, 0, 0, time.UTC)
}

// opens is when a shop opens on the nth day: at nine o'clock its time.
func (s *Schedule) opens(store, n int) time.Time {
	if s.Gap > 0 && n >= s.Days-1 {
		n += s.Gap
	}
	zone, err := time.LoadLocation(s.Stores[store].Zone)
	if err != nil {
		panic(err) // of a schedule that was written by hand
	}
	d := s.Start.AddDays(n)
	return time.Date(d.Year, d.Month, d.Date, 9, 0, 0, 0, zone)
}

// Without is the schedule less one fault.
func (s Schedule) Without(fault int) Schedule {
	s.Faults = slices.Delete(slices.Clone(s.Faults), fault, fault+1)
	return s
}

// has says whether a kind of fault is in the schedule for a store.
func (s *Schedule) has(kind Kind, store int) bool {
	return slices.ContainsFunc(s.Faults, func(f Fault) bool { return f.Kind == kind && f.Store == store })
}

// String is the schedule for a reader.
func (s *Schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d days from %s", s.Seed, s.Days, s.Start)
	if s.Gap > 0 {
		fmt.Fprintf(&b, ", %d days closed before the last", s.Gap)
	}
	b.WriteString("\n")
	for i, shop := range s.Stores {
		fmt.Fprintf(&b, "  store %s: %s, business day from %q, %d tills, %d counters, about %d sales each day and till, PC on at night: %v\n",
			storeID(i), shop.Zone, shop.CutOff, shop.Tills, shop.Counters, shop.Sales, shop.Always)
	}
	for _, f := range s.Faults {
		fmt.Fprintf(&b, "  %s  %-12s store %s  for %-8s n=%d\n", s.begins().Add(time.Duration(f.At)).Format("02 15:04:05.000"), f.Kind, storeID(f.Store), time.Duration(f.For), f.N)
	}
	return b.String()
}

// JSON is the schedule as a file.
func (s *Schedule) JSON() []byte {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic(err) // numbers and texts
	}
	return append(text, '\n')
}

func storeID(i int) string { return fmt.Sprintf("%04d", i+1) }
