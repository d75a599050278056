package chain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

// The ids of a store's devices and of its first till.
const (
	Counter     = "door"
	Drawer      = "drawer-1"
	Workstation = "1"
)

// A Store is one store: an agent process, its counter, its printer with a drawer, its tills.
type Store struct {
	ID      string
	Agent   *Process
	Config  string              // the agent's configuration file
	Data    string              // the agent's folder: what a disk image has
	API     string              // the agent's local address
	Token   string              // of the first till
	Counter *drivertest.Terabee // nil: the PC has no devices
	Printer *drivertest.Printer
	Till    *drivertest.Till   // the first
	Tills   []*drivertest.Till // all
	Line    *Line              // nil without Options.Lines
	Drops   []string           // folders of Options.Drops

	drawer bool             // the till opens the drawer
	relays []string         // in the agent's configuration
	drops  []map[string]any // there too

	base drivertest.Passages // who passed before the counter's baseline was known
	ptys []*drivertest.Pty
	end  context.CancelFunc // of the simulators
	done sync.WaitGroup
}

func (c *Chain) newStore(ctx context.Context, i int) (*Store, error) {
	s := &Store{ID: storeID(i), Token: token(storeID(i), Workstation)}
	dir := filepath.Join(c.opts.Dir, "store-"+s.ID)
	identity := filepath.Join(dir, "identity")
	if _, err := c.Admin(ctx, "issue", "-chain", Name, "-store", s.ID, "-agent", "pc-"+s.ID, "-out", identity); err != nil {
		return nil, err
	}
	var err error
	if s.API, err = FreeAddress(); err != nil {
		return nil, err
	}
	counterPort, printerPort := filepath.Join(dir, "tty-counter"), filepath.Join(dir, "tty-printer")
	relays := make([]string, len(c.Relays))
	for i, r := range c.Relays {
		relays[i] = "tls://" + r.MQTT
	}
	if c.opts.Lines {
		if s.Line, err = NewLine(c.Relays[0].MQTT); err != nil {
			return nil, err
		}
		relays = []string{"tls://" + s.Line.Address}
	}
	drawer := Drawer
	if c.opts.NoDrawer {
		drawer = ""
	}
	s.Config, s.Data, s.relays = filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "data"), relays
	devices := []map[string]any{
		{"id": Counter, "driver": "terabee", "port": counterPort, "settings": map[string]any{"interval": c.opts.Interval.String()}},
		{"id": Drawer, "driver": "escpos", "port": printerPort},
	}
	for _, of := range c.opts.Drops {
		drop := maps.Clone(of)
		folder := filepath.Join(dir, fmt.Sprint("drop-", drop["id"]))
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return nil, err
		}
		drop["folder"] = folder
		s.Drops, s.drops = append(s.Drops, folder), append(s.drops, drop)
	}
	workstations := make([]string, c.opts.Tills)
	for n := range workstations {
		workstations[n] = strconv.Itoa(n + 1)
	}
	if err := s.configure(identity, workstations, devices); err != nil {
		return nil, err
	}
	s.Agent = NewProcess("agent-"+s.ID, c.opts.Dir, c.bin("storelay-agent"), "run", "-config", s.Config)
	s.Counter = drivertest.NewTerabee(drivertest.TerabeeOptions{Seed: uint64(i + 1)})
	s.Printer = drivertest.NewPrinter(drivertest.PrinterOptions{OpenLow: i%2 == 1})
	for n, w := range workstations {
		s.Tills = append(s.Tills, drivertest.NewTill(drivertest.TillOptions{URL: "http://" + s.API, Token: token(s.ID, w), Store: s.ID, Workstation: w,
			Currency: "SEK", Seed: uint64(i+1) + uint64(n)<<32, Drawer: drawer}))
	}
	s.Till = s.Tills[0]
	s.drawer = drawer != ""
	return s, s.plugIn(counterPort, printerPort) //nolint:contextcheck // the devices stay in until the store ends
}

// configure writes the agent's configuration file.
func (s *Store) configure(identity string, workstations []string, devices []map[string]any) error {
	tills := make([]map[string]any, len(workstations))
	for n, w := range workstations {
		tills[n] = map[string]any{"workstation": w, "token": token(s.ID, w)}
	}
	return writeJSON(s.Config, map[string]any{
		"data": s.Data, "identity": identity, "relays": s.relays, "listen": s.API,
		"tills": tills, "devices": devices, "drops": s.drops,
	})
}

// TokenOf is the token of a workstation's till.
func (s *Store) TokenOf(workstation string) string { return token(s.ID, workstation) }

func token(store, workstation string) string {
	return fmt.Sprintf("till-secret-of-store-%s-%s", store, workstation)
}

// Image copies the disk of the store's PC to a folder. Its agent must not run.
func (s *Store) Image(to string) error { return os.CopyFS(to, os.DirFS(s.Data)) }

// Restore puts the image of a disk in the place of the PC's own; "" is an empty one.
func (s *Store) Restore(image string) error {
	if err := os.RemoveAll(s.Data); err != nil || image == "" {
		return err
	}
	return os.CopyFS(s.Data, os.DirFS(image))
}

// Clone sets up another PC from the image of a store's disk: with the same identity, without
// devices, and with a till of its own.
func (c *Chain) Clone(of *Store, image, workstation string) (*Store, error) {
	dir := filepath.Join(c.opts.Dir, "clone-"+of.ID+"-"+workstation)
	s := &Store{ID: of.ID, Config: filepath.Join(dir, "agent.yaml"), Data: filepath.Join(dir, "data"), Token: token(of.ID, workstation), relays: of.relays}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if s.API, err = FreeAddress(); err != nil {
		return nil, err
	}
	if err := errors.Join(s.Restore(image), s.configure(filepath.Join(filepath.Dir(of.Config), "identity"), []string{workstation}, nil)); err != nil {
		return nil, err
	}
	s.Agent = NewProcess(filepath.Base(dir), c.opts.Dir, c.bin("storelay-agent"), "run", "-config", s.Config)
	s.Till = drivertest.NewTill(drivertest.TillOptions{URL: "http://" + s.API, Token: s.Token, Store: s.ID, Workstation: workstation, Currency: "SEK", Seed: 99})
	s.Tills = []*drivertest.Till{s.Till}
	c.Stores = append(c.Stores, s)
	return s, nil
}

// Enrol gives the store's PC a new identity, and its till a new number, as a new PC gets.
func (c *Chain) Enrol(ctx context.Context, s *Store, agent string) error {
	identity := filepath.Join(filepath.Dir(s.Config), "identity")
	if err := os.RemoveAll(identity); err != nil {
		return err
	}
	_, err := c.Admin(ctx, "issue", "-chain", Name, "-store", s.ID, "-agent", agent, "-out", identity)
	return err
}

// Drain runs the agent's sub-command that delivers what former agents of the PC still hold.
func (c *Chain) Drain(ctx context.Context, s *Store) (string, error) {
	out, err := exec.CommandContext(ctx, c.bin("storelay-agent"), "drain", "-config", s.Config).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("storelay-agent drain: %w: %s", err, out)
	}
	return string(out), nil
}

// plugIn puts the simulators on their pseudo-terminals.
func (s *Store) plugIn(counterPort, printerPort string) error {
	ctx, end := context.WithCancel(context.Background())
	s.end = end
	for _, d := range []struct {
		port string
		run  func(context.Context, *drivertest.Pty) error
	}{
		{counterPort, func(ctx context.Context, p *drivertest.Pty) error { return s.Counter.Run(ctx, p) }},
		{printerPort, func(ctx context.Context, p *drivertest.Pty) error { return s.Printer.Run(ctx, p) }},
	} {
		pty, err := drivertest.OpenPty(d.port)
		if err != nil {
			return err
		}
		s.ptys = append(s.ptys, pty)
		s.done.Go(func() { _ = pty.Serve(ctx, func() error { return d.run(ctx, pty) }) }) // ends with ctx
	}
	return nil
}

// AgentStatus is the part of the agent's status that the proof looks at.
type AgentStatus struct {
	Queue struct {
		Waiting int64     `json:"waiting"`
		Oldest  time.Time `json:"oldest"`
	} `json:"queue"`
	Devices []struct {
		ID    string
		State string
		Last  *struct{ RawIn, RawOut int64 }
	} `json:"devices"`
}

// Status asks the agent.
func (s *Store) Status(ctx context.Context) (AgentStatus, error) {
	var status AgentStatus
	_, err := request(ctx, "http://"+s.API+"/v1/status", s.Token, &status)
	return status, err
}

// Accepted lists the sales of all tills that were answered 201, till by till.
func (s *Store) Accepted() []drivertest.Receipt {
	var all []drivertest.Receipt
	for _, t := range s.Tills {
		all = append(all, t.Accepted()...)
	}
	return all
}

// StatusInto reads the agent's whole status.
func (s *Store) StatusInto(ctx context.Context, into any) error {
	_, err := request(ctx, "http://"+s.API+"/v1/status", s.Token, into)
	return err
}

// Awake waits until the agent answers and its devices are online.
func (s *Store) Awake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return s.Agent.until(ctx, func() bool {
		status, err := s.Status(ctx)
		if err != nil {
			return false
		}
		for _, d := range status.Devices {
			if d.State != "online" {
				return false
			}
		}
		return true
	})
}

// StartAgent starts the agent, again after it has ended, and waits until it answers and its
// devices are online. At the first start it lets one person pass, who gives the counter its
// baseline and is not counted.
func (s *Store) StartAgent(ctx context.Context) error {
	if err := s.Agent.Start(); err != nil {
		return err
	}
	err := s.Awake(ctx)
	if err != nil || s.Counter == nil || s.base != (drivertest.Passages{}) {
		return err
	}
	s.Counter.Walk(1, 0)
	s.base = s.Counter.Truth()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return s.Agent.until(ctx, func() bool {
		status, err := s.Status(ctx)
		if err != nil {
			return false
		}
		for _, d := range status.Devices {
			if d.ID == Counter && d.Last != nil && d.Last.RawIn == s.base.In {
				return true
			}
		}
		return false
	})
}

// A Pace is how busy a store is.
type Pace struct {
	Visitors time.Duration // mean time between two people who come in
	Sales    time.Duration // mean time between two sales
	Seed     uint64
}

// Trade lets people walk in and out and buy until ctx ends; sales that are under way are
// finished within grace after that.
func (s *Store) Trade(ctx context.Context, pace Pace, grace time.Duration) {
	var g sync.WaitGroup
	random := rand.New(rand.NewPCG(pace.Seed, 1))
	g.Go(func() {
		for s.Counter != nil && pause(ctx, random, pace.Visitors) {
			s.Counter.Walk(1, 0)
			if random.IntN(3) > 0 {
				s.Counter.Walk(0, 1)
			}
		}
	})
	saleRandom := rand.New(rand.NewPCG(pace.Seed, 2))
	g.Go(func() {
		for pause(ctx, saleRandom, pace.Sales) {
			// A sale that has begun is finished even when trading ends: the customer has paid.
			saleCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
			stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
			receipt, err := s.Till.Sale(saleCtx) // what was not accepted is not in the till's list
			stop()
			cancel()
			if _, cash := receipt.Tenders["cash"]; cash && err == nil && s.drawer {
				s.closeDrawer()
			}
		}
	})
	g.Wait()
}

// closeDrawer is the cashier: when the drawer has sprung open, it is pushed in again.
func (s *Store) closeDrawer() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(time.Second); !s.Printer.Opened(); {
		select {
		case <-tick.C:
		case <-limit:
			return
		}
	}
	<-tick.C
	s.Printer.PushIn()
}

// pause waits a random time around mean; false when ctx has ended.
func pause(ctx context.Context, random *rand.Rand, mean time.Duration) bool {
	timer := time.NewTimer(time.Duration(random.ExpFloat64() * float64(mean)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (s *Store) stop() error {
	err := s.Agent.Stop()
	if s.Line != nil {
		err = errors.Join(err, s.Line.Close())
	}
	if s.end != nil {
		s.end()
	}
	for _, pty := range s.ptys {
		err = errors.Join(err, pty.Close())
	}
	s.done.Wait()
	return err
}
