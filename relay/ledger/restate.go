package ledger

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// changes names what a newer certificate of the same day says otherwise, one sentence each.
func (c *DayCertificate) changes(now *DayCertificate) []string {
	var all []string
	say := func(format string, args ...any) { all = append(all, printable(fmt.Sprintf(format, args...))) }
	if c.State != now.State {
		say("the day was %s and is %s", c.State, now.State)
	}
	both(c.Records, now.Records, func(k KindCount) string { return k.Kind }, func(kind string, was, is *KindCount) {
		say("records of kind %s: %d were here, now %d", kind, countOf(was), countOf(is))
	})
	both(c.Agents, now.Agents, func(a AgentDay) string { return a.Agent }, func(name string, was, is *AgentDay) {
		say("agent %s: %s; now %s", name, was.text(), is.text())
	})
	both(c.Tills, now.Tills, func(t TillDay) string { return t.Workstation }, func(name string, was, is *TillDay) {
		say("till %s: %s; now %s", name, was.text(), is.text())
	})
	both(c.Counters, now.Counters, func(c CounterDay) string { return c.Counter }, func(name string, was, is *CounterDay) {
		say("counter %s: %s; now %s", name, was.text(), is.text())
	})
	both(c.Reasons, now.Reasons, func(r Reason) string { return r.Kind + "\x00" + r.Who + "\x00" + r.What }, func(_ string, was, is *Reason) {
		switch {
		case is == nil:
			say("no longer: %s", was.What)
		case was == nil:
			say("new: %s", is.What)
		case is.Settled == nil:
			say("no longer settled: %s", is.What)
		}
		if is != nil && is.Settled != nil {
			say("settled by %s: %s", is.Settled.By, is.What)
		}
	})
	if len(all) == 0 || !sameLists(c, now) {
		say("the lists of holes, quarantined records or alarms differ")
	}
	return all
}

func sameLists(c, now *DayCertificate) bool {
	return reflect.DeepEqual(c.Holes, now.Holes) && reflect.DeepEqual(c.Quarantined, now.Quarantined) && reflect.DeepEqual(c.Alarms, now.Alarms)
}

// both calls differs for each name under which the lists hold something else; nil = nothing.
func both[T any](was, is []T, name func(T) string, differs func(name string, was, is *T)) {
	var names []string
	before, after := map[string]*T{}, map[string]*T{}
	for i := range was {
		n := name(was[i])
		before[n], names = &was[i], append(names, n)
	}
	for i := range is {
		n := name(is[i])
		after[n], names = &is[i], append(names, n)
	}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		if !reflect.DeepEqual(before[n], after[n]) {
			differs(n, before[n], after[n])
		}
	}
}

func countOf(k *KindCount) int64 {
	if k == nil {
		return 0
	}
	return k.Count
}

func (a *AgentDay) text() string {
	switch {
	case a == nil:
		return "not expected"
	case a.Mark == nil:
		return "no mark"
	case !a.Complete:
		return fmt.Sprintf("a mark at record %d, and %s", a.Mark.Head.Through, a.Problem)
	}
	return fmt.Sprintf("complete up to record %d of epoch %s", a.Mark.Head.Through, a.Mark.Head.Epoch)
}

func (t *TillDay) text() string {
	if t == nil {
		return "nothing"
	}
	parts := []string{fmt.Sprintf("%d receipts", t.Count)}
	switch {
	case t.Wrapped:
		parts[0] += fmt.Sprintf(" (numbers %d and on, and 1 to %d again)", t.First, t.Last)
	case t.Count > 0:
		parts[0] += fmt.Sprintf(" (%s)", numbered("number", t.First, t.Last))
	}
	for _, m := range t.Missing {
		parts = append(parts, "without "+numbered("number", m.From, m.To))
	}
	for what, n := range map[string]int64{"voided": t.Voided, "repeated": t.Repeated, "in conflict": t.Conflicts} {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	slices.Sort(parts[1:])
	if !t.Expected {
		parts = append(parts, "not expected")
	}
	return strings.Join(parts, ", ")
}

func (c *CounterDay) text() string {
	if c == nil {
		return "nothing"
	}
	return fmt.Sprintf("%d counts that cover %d permille, %d doubtful", c.Counts, c.Permille, c.Doubtful)
}
