package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

// A feed is asked for when it is due.
type feed struct {
	name string
	due  time.Time
}

// ask asks for the feeds that are due.
func (s *Sender) ask(now time.Time) (outs []Out, wake time.Time, err error) {
	for i := range s.feeds {
		f := &s.feeds[i]
		if !now.Before(f.due) {
			after, err := s.replica.Cursor(f.name)
			if err != nil {
				return nil, time.Time{}, fmt.Errorf("read cursor of feed %s: %w", f.name, err)
			}
			payload, err := json.Marshal(protocol.Ask{Feed: &protocol.FeedAsk{Feed: f.name, After: after}})
			if err != nil {
				return nil, time.Time{}, fmt.Errorf("encode feed request: %w", err)
			}
			outs = append(outs, Out{TopicAsk, payload})
			f.due = now.Add(s.jitter(s.opt.Stall)) // no page by then: ask again
		}
		wake = earlier(wake, f.due)
	}
	return outs, wake, nil
}

// news takes the hint that a feed has moved.
func (s *Sender) news(now time.Time, payload []byte) error {
	var news protocol.News
	if json.Unmarshal(payload, &news) != nil {
		return s.garbage()
	}
	for i := range s.feeds {
		if s.feeds[i].name == news.Feed {
			s.feeds[i].due = now
		}
	}
	return nil
}

// page applies a page of a feed, and asks on at once if it has led on and is not the last.
// After one that does not follow the cursor the feed is asked again when it was going to be.
// Its incarnation is heeded first: an agent whose ledger was restored may have nothing to send.
func (s *Sender) page(now time.Time, page *protocol.FeedPage) error {
	if page.Incarnation > 0 {
		if _, err := s.heed(page.Incarnation); err != nil {
			return err
		}
	}
	for i := range s.feeds {
		f := &s.feeds[i]
		if f.name != page.Feed {
			continue
		}
		before, err := s.replica.Cursor(f.name)
		if err != nil {
			return fmt.Errorf("read cursor of feed %s: %w", f.name, err)
		}
		if page.From != before && !page.Reset && !mutant.On(mutant.ApplyPageTwice) {
			return nil
		}
		if err := s.replica.Apply(*page); errors.Is(err, ErrFull) {
			f.due = now.Add(s.jitter(s.opt.FeedEvery / 2))
			s.note(func(st *Status) { st.LastError = err.Error() })
			return nil
		} else if err != nil {
			return fmt.Errorf("apply page of feed %s: %w", page.Feed, err)
		}
		switch {
		case !page.More:
			f.due = now.Add(s.jitter(s.opt.FeedEvery / 2))
		case page.To != before:
			f.due = now
		}
		return nil
	}
	return s.garbage()
}
