package link_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
)

// A stub is one end of a line in memory: messages in frames of topic, length and payload.
// What it has written is counted, and the line is cut after the last byte that it may write.
type stub struct {
	net.Conn
	in      *bufio.Reader
	written *int
	most    int // bytes; 0 = any number
}

var errCut = errors.New("line was cut")

func (s stub) write(topic link.Topic, payload []byte) error {
	frame := binary.BigEndian.AppendUint32([]byte{byte(topic)}, uint32(len(payload)))
	frame = append(frame, payload...)
	cut := s.most > 0 && *s.written+len(frame) >= s.most
	if cut {
		frame = frame[:s.most-*s.written]
	}
	n, err := s.Write(frame)
	*s.written += n
	if cut {
		return errors.Join(errCut, s.Close(), err)
	}
	return err
}

func (s stub) read() (link.Topic, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return 0, nil, err
	}
	payload := make([]byte, binary.BigEndian.Uint32(head[1:]))
	_, err := io.ReadFull(s.in, payload)
	return link.Topic(head[0]), payload, err
}

// A line is a stub as the agent's link.Conn.
type line struct {
	stub
	down chan []byte
	dead chan struct{} // closed when nothing more comes
}

func (l line) ID() string { return "c" }

func (l line) Publish(_ context.Context, topic link.Topic, payload []byte) error {
	return l.write(topic, payload)
}

func (l line) Receive(ctx context.Context) (link.Topic, []byte, error) {
	select {
	case payload := <-l.down:
		return link.TopicDown, payload, nil
	case <-l.dead:
		return 0, nil, io.EOF
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

// lay connects an agent's end with a relay that serves it until the line is cut.
func lay(done *sync.WaitGroup, sink link.Sink, up, down stub) line {
	agent, relay := net.Pipe()
	up.Conn, up.in = agent, bufio.NewReader(agent)
	down.Conn, down.in = relay, bufio.NewReader(relay)
	l := line{up, make(chan []byte, 64), make(chan struct{})}
	done.Go(func() {
		defer close(l.dead)
		for {
			_, payload, err := l.read()
			if err != nil {
				return
			}
			l.down <- payload
		}
	})
	done.Go(func() {
		defer relay.Close()
		r := link.NewReceiver(sink)
		for {
			topic, payload, err := down.read()
			if err != nil {
				return
			}
			answer, err := r.Handle(context.Background(), linktest.Origin(), "c", topic, payload)
			if err != nil || answer != nil && down.write(link.TopicDown, answer) != nil {
				return
			}
		}
	})
	return l
}

// session delivers two epochs and a feed. Its first connection is cut after so many bytes up
// or down; 0 = not at all. It returns how many bytes went either way on that connection.
func session(t *testing.T, cutUp, cutDown int) (up, down int) {
	source, sink, replica := linktest.NewSource(), linktest.NewSink(), linktest.NewReplica()
	source.Begin(1)
	source.Append(1)
	source.Append(1200) // is compressed
	source.Begin(2)
	source.Append(1)
	sink.Put("a", "1")
	sink.Put("b", "2")
	sender := link.NewSender(source, replica, []string{"items"}, link.Options{MaxRecords: 2}, rand.New(rand.NewPCG(1, 1)))
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	calls := 0
	dial := func(context.Context, string) (link.Conn, error) { //nolint:unparam // as link.Keep wants it
		if calls++; calls == 1 {
			return lay(&done, sink, stub{written: &up, most: cutUp}, stub{written: &down, most: cutDown}), nil
		}
		return lay(&done, sink, stub{written: new(int)}, stub{written: new(int)}), nil
	}
	done.Go(func() {
		if err := link.Keep(ctx, dial, []string{"a"}, sender, link.KeepOptions{}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	<-time.After(20 * time.Second) // of the bubble's clock
	cancel()
	done.Wait()
	if err := linktest.Check(source, sink); err != nil {
		t.Errorf("cut after %d bytes up, %d down: %v; status %+v", cutUp, cutDown, err, sender.Status())
	}
	if got := replica.Values("items"); !maps.Equal(got, sink.Values()) {
		t.Errorf("cut after %d bytes up, %d down: feed %v, want %v", cutUp, cutDown, got, sink.Values())
	}
	if s := sender.Status(); cutUp+cutDown > 0 && s.Connects != 2 || s.Forks+s.Rewinds > 0 {
		t.Errorf("cut after %d bytes up, %d down: status %+v, want one more connection and nothing else", cutUp, cutDown, s)
	}
	return up, down
}

// TestASessionCutAfterEveryByteLosesAndDoublesNothing cuts the line after each byte of a
// whole session, in either direction.
func TestASessionCutAfterEveryByteLosesAndDoublesNothing(t *testing.T) {
	run := func(cutUp, cutDown int) (up, down int) {
		synctest.Test(t, func(t *testing.T) { up, down = session(t, cutUp, cutDown) })
		return up, down
	}
	up, down := run(0, 0)
	if up < 1000 || down < 1000 {
		t.Fatalf("%d bytes up, %d down, want a session", up, down)
	}
	for n := 1; n <= up && !t.Failed(); n++ {
		run(n, 0)
	}
	for n := 1; n <= down && !t.Failed(); n++ {
		run(0, n)
	}
	t.Logf("cut after each of %d bytes up and %d down", up, down)
}
