package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/storelay/storelay/e2e/chain"
)

// BenchmarkAgent measures the agent's program as it is shipped, one scenario a run: accepts
// over HTTP beside the disk's own limit, a queue of 100,000 in memory and on disk, its start,
// its rebuild and its drain.
func BenchmarkAgent(b *testing.B) {
	const queued = 100_000
	c := startBench(b)
	s := c.Stores[0]
	for range b.N {
		wait(5 * time.Second)
		b.ReportMetric(anonymous(b, s.Agent.PID()), "MB-idle")
		must(b, c.Relays[0].Kill())

		dir := b.TempDir()
		till := &poster{url: "http://" + s.API + "/v1/transactions", token: s.Token, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
		for _, clients := range []int{1, 16} {
			// The disk and the agent in turn, three times, since the disk's speed wanders.
			var raw, http load
			for range 3 {
				raw.add(run(b, clients, 2*time.Second, rawSync(b, dir)))
				http.add(run(b, clients, 2*time.Second, till.post))
			}
			b.ReportMetric(http.rate(), fmt.Sprintf("accepts/s-%d", clients))
			b.ReportMetric(http.rate()/raw.rate(), fmt.Sprintf("of-raw-%d", clients))
			b.ReportMetric(http.p99().Seconds()*1000, fmt.Sprintf("ms-p99-%d", clients))
			b.ReportMetric(float64(http.p99())/float64(raw.p99()), fmt.Sprintf("p99-of-raw-%d", clients))
		}
		waiting := waitingOf(b, s)
		fill(b, till, queued-int(waiting))
		wait(2 * time.Second)
		b.ReportMetric(anonymous(b, s.Agent.PID()), "MB-queued")
		journal := filepath.Join(filepath.Dir(s.Config), "data", "journal")
		b.ReportMetric(float64(sizeOf(b, journal, func(string) bool { return true }))/queued/1000, "KB/record")

		must(b, s.Agent.Stop())
		b.ReportMetric(startTime(b, s).Seconds(), "s-start")
		must(b, s.Agent.Stop())
		must(b, os.RemoveAll(filepath.Join(journal, "index")))
		b.ReportMetric(startTime(b, s).Seconds(), "s-rebuild")

		must(b, c.StartRelay(b.Context(), c.Relays[0]))
		for waitingOf(b, s) > queued*95/100 { // until it is connected
			wait(10 * time.Millisecond)
		}
		began, first := time.Now(), waitingOf(b, s)
		for waitingOf(b, s) > 0 {
			wait(10 * time.Millisecond)
		}
		b.ReportMetric(float64(first)/time.Since(began).Seconds(), "drained/s")
		wait(70 * time.Second) // the keeper comes once a minute
		packed := func(name string) bool { return strings.HasSuffix(name, ".zst") }
		b.ReportMetric(float64(sizeOf(b, journal, func(n string) bool { return !packed(n) }))/1e6, "MB-drained")
		b.ReportMetric(float64(sizeOf(b, journal, packed))/queued/1000, "KB/kept")
		b.ReportMetric(0, "ns/op") // says nothing here
	}
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func startBench(b *testing.B) *chain.Chain {
	b.Helper()
	c, err := chain.Start(b.Context(), chain.Options{Dir: b.TempDir(), Bin: bin, Stores: 1, NoDrawer: true})
	must(b, err)
	b.Cleanup(func() {
		if err := c.Stop(); err != nil {
			b.Error(err)
		}
	})
	return c
}

// anonymous is the memory of a process that is not a mapped file, MB.
func anonymous(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(b, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			must(b, err)
			return float64(kb) / 1000
		}
	}
	b.Fatal("no RssAnon")
	return 0
}

func sizeOf(b *testing.B, dir string, count func(name string) bool) (bytes int64) {
	b.Helper()
	must(b, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !count(path) {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512 // what it takes, not what it seems to
		}
		return err
	}))
	return bytes
}

func waitingOf(b *testing.B, s *chain.Store) int64 {
	b.Helper()
	status, err := s.Status(b.Context())
	must(b, err)
	return status.Queue.Waiting
}

// startTime is the time from the start of the process to its first answer.
func startTime(b *testing.B, s *chain.Store) time.Duration {
	b.Helper()
	began := time.Now()
	must(b, s.Agent.Start())
	for {
		if _, err := s.Status(b.Context()); err == nil {
			return time.Since(began)
		}
		if time.Since(began) > time.Minute {
			b.Fatal("the agent does not start")
		}
		wait(2 * time.Millisecond)
	}
}

// A load is what a number of clients did.
type load struct {
	took  []time.Duration // of each call
	spent time.Duration
}

func (l *load) add(o load) { l.took, l.spent = append(l.took, o.took...), l.spent+o.spent }

func (l *load) rate() float64 { return float64(len(l.took)) / l.spent.Seconds() }

func (l *load) p99() time.Duration {
	slices.Sort(l.took)
	return l.took[len(l.took)*99/100]
}

// run lets clients call one after the other for a time.
func run(b *testing.B, clients int, d time.Duration, call func() error) load {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), d)
	defer cancel()
	var g sync.WaitGroup
	all := make([][]time.Duration, clients)
	began := time.Now()
	for i := range clients {
		g.Go(func() {
			for ctx.Err() == nil {
				at := time.Now()
				if err := call(); err != nil {
					b.Error(err)
					return
				}
				all[i] = append(all[i], time.Since(at))
			}
		})
	}
	g.Wait()
	return load{slices.Concat(all...), time.Since(began)}
}

// rawSync is the yardstick: 500 bytes written to a file that has its blocks, one fdatasync
// for all that wait.
func rawSync(b *testing.B, dir string) func() error {
	b.Helper()
	const room = 64 << 20
	f, err := os.Create(filepath.Join(dir, "raw"))
	must(b, err)
	b.Cleanup(func() { f.Close() })
	_, err = f.Write(make([]byte, room))
	must(b, err)
	must(b, f.Sync())
	calls := make(chan chan error, 64)
	b.Cleanup(func() { close(calls) })
	go func() {
		off := int64(0)
		for first := range calls {
			group := []chan error{first}
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
			buf := make([]byte, 500*len(group))
			if off+int64(len(buf)) > room {
				off = 0
			}
			_, err := f.WriteAt(buf, off)
			if err == nil {
				err = syscall.Fdatasync(int(f.Fd()))
			}
			off += int64(len(buf))
			for _, c := range group {
				c <- err
			}
		}
	}()
	return func() error {
		done := make(chan error, 1)
		calls <- done
		return <-done
	}
}

// A poster posts one sale after the other, each another.
type poster struct {
	url, token string
	client     *http.Client

	mu   sync.Mutex // guards next
	next int
}

func (p *poster) post() error {
	p.mu.Lock()
	p.next++
	n := p.next
	p.mu.Unlock()
	now := time.Now().Format(time.RFC3339)
	body := fmt.Appendf(nil, `{"sequenceNumber":%d,"type":"sale","begin":"%[2]s","end":"%[2]s","currency":"SEK","lines":[{"type":"sale","item":"4711","quantity":{"milli":1000},"extendedAmount":12900,"taxAmount":2580,"taxRate":2500}],"tenders":[{"type":"card","amount":12900}],"total":12900}`, n, now)
	req, err := http.NewRequest(http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	req.Header.Set("Content-Type", "application/json")
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var problem json.RawMessage
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&problem); err != nil {
		return err
	}
	if res.StatusCode != http.StatusCreated {
		return fmt.Errorf("%s: %s", res.Status, problem)
	}
	return nil
}

// fill posts n sales.
func fill(b *testing.B, p *poster, n int) {
	b.Helper()
	var g sync.WaitGroup
	for w := range 64 {
		g.Go(func() {
			for i := w; i < n; i += 64 {
				if err := p.post(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
}
