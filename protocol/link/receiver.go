package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// A Receiver is the relay's half of the link. It is safe for concurrent use.
type Receiver struct {
	sink Sink
	pack packer
}

// NewReceiver makes a receiver in front of a sink.
func NewReceiver(sink Sink) *Receiver { return &Receiver{sink: sink} }

// Handle takes one payload of an agent and gives the payload to publish on its down topic;
// nil when there is nothing to say. It waits for the sink's commit. An error is the sink's:
// nothing is known to be stored, the agent gets no answer, and its connection must be closed.
func (r *Receiver) Handle(ctx context.Context, from protocol.Origin, clientID string, topic Topic, payload []byte) ([]byte, error) {
	var down *protocol.Down
	var err error
	if topic == TopicRecords {
		down, err = r.batch(ctx, from, payload)
	} else {
		down, err = r.asked(ctx, from, payload)
	}
	if err != nil || down == nil {
		return nil, err
	}
	down.To = clientID
	out, err := json.Marshal(down)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return r.pack.pack(out)
}

func (r *Receiver) batch(ctx context.Context, from protocol.Origin, payload []byte) (*protocol.Down, error) {
	text, err := r.pack.unpack(payload)
	if errors.Is(err, ErrTooBig) {
		return r.verdict(ctx, from, protocol.VerdictTooBig, err)
	} else if err != nil {
		return r.verdict(ctx, from, protocol.VerdictUnreadable, err)
	}
	batch, err := protocol.DecodeBatch(text)
	if err != nil {
		return r.verdict(ctx, from, protocol.VerdictUnreadable, err)
	}
	answer, err := r.sink.Commit(ctx, from, batch)
	if err != nil {
		return nil, err
	}
	return &protocol.Down{Answer: &answer}, nil
}

// verdict answers a batch that never reached the sink; the sink still says which ledger it is.
func (r *Receiver) verdict(ctx context.Context, from protocol.Origin, v protocol.Verdict, reason error) (*protocol.Down, error) {
	welcome, err := r.sink.Welcome(ctx, from, protocol.Hello{})
	if err != nil {
		return nil, err
	}
	return &protocol.Down{Answer: &protocol.Answer{Verdict: v, Incarnation: welcome.Incarnation, Reason: reason.Error()}}, nil
}

// asked answers a hello, a feed request or a question for marks; what cannot be read gets no answer, the agent
// asks again.
func (r *Receiver) asked(ctx context.Context, from protocol.Origin, payload []byte) (*protocol.Down, error) {
	text, err := r.pack.unpack(payload)
	if err != nil {
		return nil, nil //nolint:nilerr // garbage is no fault of the sink
	}
	var ask protocol.Ask
	if err := json.Unmarshal(text, &ask); err != nil {
		return nil, nil //nolint:nilerr // as above
	}
	switch {
	case ask.Hello != nil:
		welcome, err := r.sink.Welcome(ctx, from, *ask.Hello)
		return &protocol.Down{Welcome: &welcome}, err
	case ask.Feed != nil:
		page, err := r.sink.FeedPage(ctx, from, *ask.Feed)
		return &protocol.Down{Page: &page}, err
	case ask.Marks != nil && len(ask.Marks.Epochs) <= protocol.MaxEpochs:
		marks, err := r.sink.Marks(ctx, from, *ask.Marks)
		return &protocol.Down{Marks: &marks}, err
	}
	return nil, nil
}
