package journal

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/storelay/storelay/protocol"
)

const benchRecord = `{"workstation":"1","sequenceNumber":%d,"type":"sale","currency":"SEK","lines":[{"type":"sale","item":"4711","quantity":{"milli":1000},"extendedAmount":12900,"taxAmount":2580,"taxRate":2500}],"tenders":[{"type":"card","amount":12900}],"total":12900}`

func benchJournal(b *testing.B) (*Journal, func()) {
	b.Helper()
	j, err := Open(Options{Dir: b.TempDir(), Origin: origin()})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	return j, func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		if err := j.Close(); err != nil {
			b.Error(err)
		}
	}
}

// each runs b.N calls spread over so many writers and reports calls per second.
func each(b *testing.B, writers int, call func(n int) error) {
	b.Helper()
	var g sync.WaitGroup
	b.ResetTimer()
	for w := range writers {
		g.Go(func() {
			for n := w; n < b.N; n += writers {
				if err := call(n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "accepts/s")
}

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			j, stop := benchJournal(b)
			defer stop()
			each(b, writers, func(n int) error {
				_, err := j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Body: fmt.Appendf(nil, benchRecord, n), Keys: []string{fmt.Sprint("t:", n)}})
				return err
			})
		})
	}
}

// BenchmarkRawFsync is the yardstick: the same bytes written to a preallocated file, one sync
// for all that wait.
func BenchmarkRawFsync(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			if err := preallocate(f, 64<<20); err != nil {
				b.Fatal(err)
			}
			record := make([]byte, 500)
			type call struct{ done chan error }
			calls := make(chan call, writers)
			go func() {
				off := int64(0)
				for first := range calls {
					group := []call{first}
					for more := true; more && len(group) < 256; {
						select {
						case c, open := <-calls:
							if more = open; open {
								group = append(group, c)
							}
						default:
							more = false
						}
					}
					buf := make([]byte, 0, len(group)*len(record))
					for range group {
						buf = append(buf, record...)
					}
					if off+int64(len(buf)) > 64<<20 {
						off = 0
					}
					_, err := f.WriteAt(buf, off)
					if err == nil {
						err = dataSync(f)
					}
					off += int64(len(buf))
					for _, c := range group {
						c.done <- err
					}
				}
			}()
			each(b, writers, func(int) error {
				c := call{make(chan error, 1)}
				calls <- c
				return <-c.done
			})
			close(calls)
		})
	}
}

// BenchmarkDrain reads 100,000 queued records in batches of 500 and acknowledges them.
func BenchmarkDrain(b *testing.B) {
	const queued = 100_000
	for range b.N {
		b.StopTimer()
		j, stop := benchJournal(b)
		var g sync.WaitGroup
		for w := range 256 {
			g.Go(func() {
				for n := w; n < queued; n += 256 {
					if _, err := j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Body: fmt.Appendf(nil, benchRecord, n)}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		g.Wait()
		b.StartTimer()
		for at, _ := j.Heads(); ; {
			batch, err := j.Read(at, 500, 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			if len(batch.Records) == 0 {
				if batch.First > queued+1 {
					break
				}
				<-j.Wake()
				continue
			}
			hash := batch.Prev
			for i := range batch.Records {
				hash = batch.Records[i].Hash(hash)
			}
			if err := j.Acked(protocol.Mark{Epoch: batch.Epoch, Through: batch.Last(), Hash: hash}, 1); err != nil {
				b.Fatal(err)
			}
			at = j.Next(protocol.Position{Epoch: batch.Epoch, Seq: batch.Last()})
		}
		b.StopTimer()
		stop()
	}
	b.ReportMetric(float64(queued)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
