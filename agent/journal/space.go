package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// How the journal gets along with a disk that fills up. Minor entries are refused below the
// floor, all below half of it. Half the floor is what Badger may still need for what was
// accepted, since it does not survive a full disk. Should another program eat that too, the
// reserve is given up, so that deliveries, snapshots and the drop of what they cover go on;
// and with that eaten too, acks wait in memory and the agent does not start.
// What was accepted is never rewritten or dropped for room.

// A space is what the disk has room for.
type space struct{ free, floor uint64 } // bytes

// refuses is the error for an entry that has no room.
func (s space) refuses(minor bool) error {
	need := s.floor / 2
	if minor {
		need = s.floor
	}
	if s.free < need {
		return fmt.Errorf("%w: %d MiB free, %d needed", ErrFull, s.free>>20, need>>20)
	}
	return nil
}

// cramped says that the reserve is due, and that a fork has to wait: it writes once more what
// is there, which has been accepted, so it may go on for a while where sales may not, and the
// keeper drops behind it what was moved.
func (s space) cramped() bool { return s.free < s.floor/4 }

// brimful says that not even Badger may be written to: it writes through mapped pages, and
// the process dies of one for which the disk has no block.
func (s space) brimful() bool { return s.free < s.floor/8 }

func (j *Journal) space() (space, error) {
	free, err := j.opt.FreeBytes(j.opt.Dir)
	if err != nil {
		return space{}, fmt.Errorf("read free space: %w", err)
	}
	return space{free, j.opt.FloorBytes}, nil
}

// Tight says that the disk is nearly full: whoever can say the same in fewer records should.
func (j *Journal) Tight() bool {
	s, err := j.space()
	return err == nil && s.refuses(true) != nil
}

func (j *Journal) reservePath() string { return filepath.Join(j.opt.Dir, "reserve") }

// keepReserve lays the reserve by while there is plenty of room, and gives it up when there
// is next to none.
func (j *Journal) keepReserve() {
	s, err := j.space()
	switch {
	case err != nil:
	case s.cramped():
		if err = j.opt.Disk.Remove(j.reservePath()); err == nil {
			j.opt.Log.Error("the disk is full: the reserve is given up; make room on it", "freeMiB", s.free>>20)
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	case j.opt.ReserveBytes > 0 && s.free > 2*s.floor+uint64(j.opt.ReserveBytes):
		var f File
		if f, err = j.opt.Disk.Create(j.reservePath(), j.opt.ReserveBytes); err == nil {
			err = f.Close()
		} else if errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	if err != nil {
		j.opt.Log.Warn("reserve of disk space", "err", err)
	}
}
