package core

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/storelay/storelay/config"
	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/catalog"
	"github.com/storelay/storelay/drivers/filedrop"
	"github.com/storelay/storelay/protocol"
)

// Config is the agent's configuration file. Who the agent is (chain, store, agent) is not in
// it: the certificate in the identity folder decides.
type Config struct {
	Data     string   `yaml:"data"`     // folder of the journal, the replica and what was rejected
	Identity string   `yaml:"identity"` // folder of agent.crt, agent.key and ca.crt; default DATA/identity
	Relays   []string `yaml:"relays"`   // tls://host:port, any of them will do
	Proxy    string   `yaml:"proxy"`    // http://user:password@host:port or socks5://...; "" = straight to the relay
	Listen   string   `yaml:"listen"`   // local API for the tills; loopback only
	Zone     string   `yaml:"zone"`     // business day until head office has said; default: the PC's zone
	CutOff   string   `yaml:"cutOff"`   // HH:MM
	Log      string   `yaml:"log"`      // debug, info, warn, error
	Tills    []Till   `yaml:"tills"`
	Devices  []Device `yaml:"devices"`
	Drops    []Drop   `yaml:"drops"` // folders into which tills write files
}

// A Till is a workstation that may post to the local API.
type Till struct {
	Workstation string `yaml:"workstation"`
	Token       string `yaml:"token"` // at least 16 characters
}

// A Drop is a folder into which tills write files.
type Drop = filedrop.Config

// A Device is a counter, a drawer, a scale or the like on one of the PC's ports.
type Device struct {
	ID       string         `yaml:"id"`
	Driver   string         `yaml:"driver"`
	Port     string         `yaml:"port"`
	Settings map[string]any `yaml:"settings"`
}

// LoadConfig reads and checks the file; an error names all that is wrong with it.
func LoadConfig(path string) (Config, error) {
	c := Config{Listen: "127.0.0.1:8380", Log: "info"}
	if err := config.Load(path, &c); err != nil {
		return Config{}, err
	}
	if c.Identity == "" {
		c.Identity = filepath.Join(c.Data, "identity")
	}
	return c, nil
}

// Validate returns what is wrong with the configuration.
func (c *Config) Validate() protocol.Faults {
	var f protocol.Faults
	if c.Data == "" {
		f.Add("data", "a folder that only the agent writes, such as /var/lib/storelay-agent", "missing")
	}
	if len(c.Relays) == 0 {
		f.Add("relays", "- tls://relay.example.com:8883", "missing")
	}
	for i, relay := range c.Relays {
		if u, err := url.Parse(relay); err != nil || u.Scheme != "tls" || u.Port() == "" {
			f.Add("relays["+strconv.Itoa(i)+"]", "tls://host:port", "not a relay's address: %q", relay)
		}
	}
	if u := c.proxy(); c.Proxy != "" && (u == nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "socks5") {
		f.Add("proxy", "http://host:port or socks5://host:port, with user:password@ where it asks for one", "not a proxy's address")
	}
	if host, _, err := net.SplitHostPort(c.Listen); err != nil {
		f.Add("listen", "127.0.0.1:8380", "not host:port: %q", c.Listen)
	} else if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		f.Add("listen", "the local API has no TLS, so it listens on this PC alone: 127.0.0.1:8380", "%q is not a loopback address", host)
	}
	config.CheckLevel(c.Log, &f)
	if c.Zone != "" || c.CutOff != "" {
		store := protocol.Store{Zone: c.Zone, CutOff: c.CutOff}
		if _, err := store.Rule(); err != nil {
			f.AddAll(err)
		}
	}
	c.validateTills(&f)
	specs := make([]drivers.Spec, len(c.Devices))
	for i, d := range c.Devices {
		specs[i] = spec(d)
	}
	f = append(f, catalog.Check(specs)...)
	f = append(f, filedrop.Check(c.Drops)...)
	for i, drop := range c.Drops {
		for n, d := range c.Devices {
			if d.ID == drop.ID {
				f.Add("drops["+strconv.Itoa(i)+"].id", "", "also the id of devices[%d]", n)
			}
		}
	}
	return f
}

// proxy is the configured proxy; nil when there is none, or when it is no address.
func (c *Config) proxy() *url.URL {
	if c.Proxy == "" {
		return nil
	}
	u, _ := url.Parse(c.Proxy) // Validate says what is wrong with it, and not the password in it
	return u
}

func (c *Config) validateTills(f *protocol.Faults) {
	workstations, tokens := map[string]bool{}, map[string]bool{}
	for i, till := range c.Tills {
		at := "tills[" + strconv.Itoa(i) + "]"
		if !protocol.ValidID(till.Workstation) {
			f.Add(at+".workstation", "letters, digits, _ and -, at most 64", "not an id: %q", till.Workstation)
		} else if workstations[till.Workstation] {
			f.Add(at+".workstation", "", "%s stands twice", till.Workstation)
		}
		if len(till.Token) < 16 {
			f.Add(at+".token", "at least 16 characters, such as `openssl rand -hex 16` prints", "too short")
		} else if tokens[till.Token] {
			f.Add(at+".token", "each till has its own", "used by another till")
		}
		workstations[till.Workstation], tokens[till.Token] = true, true
	}
}

// DefaultConfig is where the configuration file is when nobody says.
func DefaultConfig() string {
	if runtime.GOOS == "windows" {
		return filepath.Join(os.Getenv("ProgramData"), "Storelay", "agent.yaml")
	}
	return "/etc/storelay/agent.yaml"
}
