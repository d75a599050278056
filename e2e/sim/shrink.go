package sim

// Shrink drops faults from a schedule that fails, one by one, for as long as it still fails,
// and then days and stores. told hears of each smaller one.
func Shrink(s Schedule, told func(Schedule, error)) Schedule {
	try := func(smaller Schedule) bool {
		r := Run(smaller, nil)
		if r.Err == nil {
			return false
		}
		s = smaller
		told(s, r.Err)
		return true
	}
	for again := true; again; {
		again = false
		for i := len(s.Faults) - 1; i >= 0; i-- {
			if i < len(s.Faults) && try(s.Without(i)) {
				again = true
			}
		}
		for len(s.Stores) > 1 && try(s.withoutStore(len(s.Stores)-1)) {
			again = true
		}
		for s.Days > 1 {
			smaller := s
			smaller.Days--
			if !try(smaller) {
				break
			}
			again = true
		}
		if s.Gap > 0 {
			smaller := s
			smaller.Gap = 0
			again = try(smaller) || again
		}
	}
	return s
}

// withoutStore is the schedule less its nth store and what happens there.
func (s Schedule) withoutStore(n int) Schedule {
	smaller := s
	smaller.Stores = append([]Shop{}, s.Stores[:n]...)
	smaller.Faults = nil
	for _, f := range s.Faults {
		if f.Store < n {
			smaller.Faults = append(smaller.Faults, f)
		} else if f.Kind.ofRelay() {
			f.Store = 0
			smaller.Faults = append(smaller.Faults, f)
		}
	}
	return smaller
}

// ofRelay says that it does not matter which store a fault names.
func (k Kind) ofRelay() bool {
	switch k {
	case KillRelay, Backup, Restore, BadReceiver, KillDelivery:
		return true
	}
	return false
}
