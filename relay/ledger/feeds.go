package ledger

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// feedPage is how many changes a page holds.
const feedPage = 200

// FeedPage gives the changes of a feed after the agent's cursor, its store's and those of
// the whole chain, the newest per key. A cursor that the ledger cannot go on from gets a page
// with Reset, which begins a snapshot. An agent that is not active gets no changes.
func (l *Ledger) FeedPage(ctx context.Context, from protocol.Origin, ask protocol.FeedAsk) (protocol.FeedPage, error) {
	page := protocol.FeedPage{Feed: ask.Feed, From: ask.After, To: ask.After, Changes: []protocol.Change{}}
	state, err := l.AgentState(ctx, from)
	if err != nil {
		return page, fmt.Errorf("feed %s: %w", ask.Feed, err)
	}
	var version, floor int64
	err = l.db.read().QueryRowContext(ctx, "SELECT c.feed_version, c.feed_floor, l.incarnation FROM chains c CROSS JOIN ledger l WHERE c.name = $1", from.Chain).
		Scan(&version, &floor, &page.Incarnation)
	if err != nil {
		return page, fmt.Errorf("feed %s for %s: %w", ask.Feed, from, err)
	}
	if state != AgentActive {
		return page, nil
	}
	after := ask.After
	if after != 0 && (after < floor || after > version) {
		page.Reset, after, page.To = true, 0, version
	}
	changes, err := list(ctx, l, from.Chain, "feed", `SELECT key, version, body FROM feeds
		WHERE chain = $1 AND feed = $2 AND store IN ('', $3) AND version > $4 ORDER BY version LIMIT $5`,
		[]any{ask.Feed, from.Store, after, feedPage + 1},
		func(row scanner, c *protocol.Change) error { return row.Scan(&c.Key, &c.Version, (*[]byte)(&c.Body)) })
	if err != nil {
		return page, err
	}
	if len(changes) > feedPage {
		changes, page.More = changes[:feedPage], true
	}
	if n := len(changes); n > 0 {
		page.Changes, page.To = changes, changes[n-1].Version
	}
	return page, nil
}

// Stores lists the chain's stores by id.
func (l *Ledger) Stores(ctx context.Context, chain string) ([]Store, error) {
	return list(ctx, l, chain, "stores", "SELECT id, name, zone, cut_off, currency FROM stores WHERE chain = $1 ORDER BY id", nil,
		func(row scanner, s *Store) error { return row.Scan(&s.ID, &s.Name, &s.Zone, &s.CutOff, &s.Currency) })
}

// PutStore makes or changes a store and, in the same commit, tells its agents through the
// config feed. Errors are protocol.Faults when a field is wrong.
func (l *Ledger) PutStore(ctx context.Context, chain string, s Store) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("store %s: %w", s.ID, err)
	}
	if !protocol.ValidID(chain) {
		return fmt.Errorf("store %s: chain %q is not an id", s.ID, chain)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("store %s: %w", s.ID, err)
	}
	err = l.feedChange(ctx, chain, protocol.FeedConfig, s.ID, protocol.StoreKey, body, func(id int64) []statement {
		return []statement{{
			text: `INSERT INTO stores (chain, id, name, zone, cut_off, currency) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (chain, id) DO UPDATE SET name = excluded.name, zone = excluded.zone, cut_off = excluded.cut_off, currency = excluded.currency`,
			args: []any{id, s.ID, storable(s.Name), s.Zone, s.CutOff, s.Currency},
		}}
	})
	if err != nil {
		return fmt.Errorf("store %s: %w", s.ID, err)
	}
	return nil
}

// feedChange writes one key of a feed at a new version, together with the statements that
// it is about. A nil body is a deletion.
func (l *Ledger) feedChange(ctx context.Context, chain, feed, store, key string, body []byte, with func(id int64) []statement) error {
	id, err := l.chainID(ctx, chain, true)
	if err != nil {
		return err
	}
	var head, version int64
	err = l.db.within(ctx, func(t tx) error {
		if err := t.run(ctx, false, statement{
			text: "UPDATE chains SET feed_version = feed_version + 1 WHERE id = $1 RETURNING head, feed_version",
			args: []any{id},
			scan: func(row scanner) error { return row.Scan(&head, &version) },
		}); err != nil {
			return err
		}
		return t.run(ctx, true, append(with(id), statement{
			text: `INSERT INTO feeds (chain, feed, store, key, version, body) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (chain, feed, store, key) DO UPDATE SET version = excluded.version, body = excluded.body`,
			args: []any{id, feed, store, key, version, nullable(body)},
		})...)
	})
	if err != nil {
		return err
	}
	l.watch.committed(chain, head, version)
	l.watch.tell(ChainNews{chain, protocol.News{Feed: feed, Version: version}})
	return nil
}
