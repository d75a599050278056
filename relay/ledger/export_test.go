package ledger

import "context"

// FeedChange lets tests write any key of a feed; a nil body deletes it.
func (l *Ledger) FeedChange(ctx context.Context, chain, feed, store, key string, body []byte) error {
	return l.feedChange(ctx, chain, feed, store, key, body, func(int64) []statement { return nil })
}
