package core

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/storelay/storelay/config"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/connect"
)

// Config is the relay's configuration file.
type Config struct {
	Data       string            `yaml:"data"`     // folder of the embedded database and the certificate authority
	Database   string            `yaml:"database"` // sqlite:PATH or postgres://...; default sqlite in DATA
	CA         string            `yaml:"ca"`       // folder of the certificate authority; default DATA/ca
	MQTT       MQTT              `yaml:"mqtt"`
	HTTP       HTTP              `yaml:"http"`
	Log        string            `yaml:"log"` // debug, info, warn, error
	Connectors []ConnectorConfig `yaml:"connectors"`
}

// MQTT is the door for agents.
type MQTT struct {
	Listen string   `yaml:"listen"`
	Hosts  []string `yaml:"hosts"` // names and addresses that agents know the relay by, for its certificate
}

// HTTP is the door for clients of the API and for people.
type HTTP struct {
	Listen string `yaml:"listen"`
	Cert   string `yaml:"cert"` // PEM; without it the relay speaks plain HTTP, on loopback alone
	Key    string `yaml:"key"`
}

// A ConnectorConfig is one remote system that a chain's records go to.
type ConnectorConfig struct {
	Chain      string   `yaml:"chain"`
	Name       string   `yaml:"name"`
	Type       string   `yaml:"type"` // webhook
	URL        string   `yaml:"url"`
	SecretFile string   `yaml:"secretFile"` // file with the signing secret, whsec_...
	Kinds      []string `yaml:"kinds"`      // none = all
	Stores     []string `yaml:"stores"`     // none = all
	Start      string   `yaml:"start"`      // beginning or now, for a connector that is new
}

// LoadConfig reads and checks the file; an error names all that is wrong with it.
func LoadConfig(path string) (Config, error) {
	c := Config{
		MQTT: MQTT{Listen: ":8883", Hosts: []string{"localhost", "127.0.0.1"}},
		HTTP: HTTP{Listen: "127.0.0.1:8480"},
		Log:  "info",
	}
	if err := config.Load(path, &c); err != nil {
		return Config{}, err
	}
	if c.Database == "" {
		c.Database = "sqlite:" + filepath.Join(c.Data, "relay.db")
	}
	if c.CA == "" {
		c.CA = filepath.Join(c.Data, "ca")
	}
	return c, nil
}

// Validate returns what is wrong with the configuration.
func (c *Config) Validate() protocol.Faults {
	var f protocol.Faults
	if c.Data == "" {
		f.Add("data", "a folder that only the relay writes, such as /var/lib/storelay-relay", "missing")
	}
	if c.Database != "" && !strings.HasPrefix(c.Database, "sqlite:") && !strings.HasPrefix(c.Database, "postgres://") && !strings.HasPrefix(c.Database, "postgresql://") {
		f.Add("database", "sqlite:/path/relay.db or postgres://user@host/name", "not a database")
	}
	if _, _, err := net.SplitHostPort(c.MQTT.Listen); err != nil {
		f.Add("mqtt.listen", ":8883", "not host:port: %q", c.MQTT.Listen)
	}
	if len(c.MQTT.Hosts) == 0 {
		f.Add("mqtt.hosts", "the names that agents know the relay by", "missing")
	}
	if (c.HTTP.Cert == "") != (c.HTTP.Key == "") {
		f.Add("http.cert", "give both http.cert and http.key, or neither", "want a certificate and its key")
	}
	if host, _, err := net.SplitHostPort(c.HTTP.Listen); err != nil {
		f.Add("http.listen", "127.0.0.1:8480", "not host:port: %q", c.HTTP.Listen)
	} else if ip := net.ParseIP(host); c.HTTP.Cert == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		f.Add("http.listen", "give http.cert and http.key, or listen on 127.0.0.1 behind a proxy that has TLS", "%q is not a loopback address and there is no certificate", host)
	}
	config.CheckLevel(c.Log, &f)
	names := map[string]bool{}
	for i, connector := range c.Connectors {
		at := "connectors[" + strconv.Itoa(i) + "]"
		if !protocol.ValidID(connector.Chain) {
			f.Add(at+".chain", "", "not an id: %q", connector.Chain)
		}
		if names[connector.Chain+"/"+connector.Name] {
			f.Add(at+".name", "", "%s stands twice", connector.Name)
		}
		names[connector.Chain+"/"+connector.Name] = true
		secret, err := os.ReadFile(connector.SecretFile)
		if err != nil {
			f.Add(at+".secretFile", "a file with the secret that signs the deliveries, whsec_ and base64", "%v", err)
			continue
		}
		for _, fault := range connector.settings(string(secret)).Validate() {
			fault.Field = at + "." + fault.Field
			f = append(f, fault)
		}
	}
	return f
}

// settings are the connector's own, with the secret read from its file.
func (c ConnectorConfig) settings(secret string) *connect.Config {
	s := &connect.Config{Name: c.Name, Type: c.Type, URL: c.URL, Secret: strings.TrimSpace(secret), Stores: c.Stores, Start: c.Start}
	for _, kind := range c.Kinds {
		s.Kinds = append(s.Kinds, protocol.Kind(kind))
	}
	return s
}
