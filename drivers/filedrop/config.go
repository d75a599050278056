package filedrop

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
)

// How a file is known to be complete.
const (
	ReadySettle = "settle" // its size and time have not changed for Settle
	ReadyRename = "rename" // it gets a name that Files matches when it is; until then it has another
	ReadyMarker = "marker" // another file says so: NAME.done, or NAME with .done for its ending
)

// The formats of files.
const (
	FormatPOSLog = "poslog"
	FormatCSV    = "csv"
	FormatJSON   = "json"
)

// A Config is one folder into which tills write files.
type Config struct {
	ID           string         `yaml:"id"`           // unique among drops and devices
	Folder       string         `yaml:"folder"`       // done, rejected and work are made within it
	Format       string         `yaml:"format"`       // poslog, csv or json
	Files        string         `yaml:"files"`        // which files, such as T*.xml; default all of the format's ending, in any case
	Ready        string         `yaml:"ready"`        // settle, rename or marker; default settle
	Settle       time.Duration  `yaml:"settle"`       // default 5s
	Marker       string         `yaml:"marker"`       // ending of a marker; default .done
	Poll         time.Duration  `yaml:"poll"`         // between two looks; default 2s
	Delete       bool           `yaml:"delete"`       // delete what is accepted; default: move it to done
	MaxMB        int            `yaml:"maxMB"`        // a longer file is rejected unread; default 64
	Workstation  string         `yaml:"workstation"`  // the till that all files are of; default: the files say
	Workstations map[string]any `yaml:"workstations"` // the tills' own names: ours
	Store        string         `yaml:"store"`        // what the files call this store; default: its id
	Currency     string         `yaml:"currency"`     // where the files do not say
	Zone         string         `yaml:"zone"`         // of times without an offset; default: the store's
	Tenders      map[string]any `yaml:"tenders"`      // the tills' own means of payment: ours
	Statuses     map[string]any `yaml:"statuses"`     // poslog, TransactionStatus: sale, void, or what it was instead of a sale
	CSV          CSV            `yaml:"csv"`
}

// withDefaults fills in what the file leaves out.
func (c Config) withDefaults() Config {
	if c.Files == "" {
		c.Files = map[string]string{FormatPOSLog: "*.xml", FormatCSV: "*.csv", FormatJSON: "*.json"}[c.Format]
	}
	if c.Ready == "" {
		c.Ready = ReadySettle
	}
	if c.Settle == 0 {
		c.Settle = 5 * time.Second
	}
	if c.Ready != ReadySettle {
		c.Settle = 0
	}
	if c.Marker == "" {
		c.Marker = ".done"
	}
	if c.Poll == 0 {
		c.Poll = 2 * time.Second
	}
	if c.MaxMB == 0 {
		c.MaxMB = 64
	}
	return c
}

// Check gives all that is wrong with an agent's drops; the fields begin with drops[i]. It
// opens nothing.
func Check(drops []Config) protocol.Faults {
	var faults protocol.Faults
	ids, folders := map[string]int{}, map[string]int{}
	for i := range drops {
		at := fmt.Sprintf("drops[%d]", i)
		drops[i].validate(at, &faults)
		if first, ok := ids[drops[i].ID]; ok {
			faults.Add(at+".id", "", "also the id of drops[%d]", first)
		}
		folder := path.Clean(drops[i].Folder)
		if first, ok := folders[folder]; ok && drops[i].Folder != "" {
			faults.Add(at+".folder", "a folder has one format; let the tills write into two", "also the folder of drops[%d]", first)
		}
		ids[drops[i].ID], folders[folder] = i, i
	}
	return faults
}

func (c Config) validate(at string, f *protocol.Faults) {
	if !protocol.ValidID(c.ID) {
		f.Add(at+".id", "letters, digits, _ and -, at most 64", "not an id: %q", c.ID)
	}
	if c.Folder == "" {
		f.Add(at+".folder", "the folder into which the till writes", "missing")
	}
	switch c.Format {
	case FormatPOSLog, FormatJSON:
		if len(c.CSV.Columns) > 0 {
			f.Add(at+".csv", "set format: csv, or leave it out", "format is %s", c.Format)
		}
	case FormatCSV:
		c.CSV.validate(at+".csv", f)
	default:
		f.Add(at+".format", "", "want poslog, csv or json, got %q", c.Format)
	}
	if _, err := path.Match(c.Files, "x"); err != nil {
		f.Add(at+".files", "such as *.xml or T?.csv", "not a pattern: %q", c.Files)
	}
	switch c.Ready {
	case "", ReadySettle, ReadyRename, ReadyMarker:
	default:
		f.Add(at+".ready", "", "want settle, rename or marker, got %q", c.Ready)
	}
	for _, d := range []struct {
		key       string
		value     time.Duration
		low, high time.Duration
	}{{"settle", c.Settle, 100 * time.Millisecond, time.Hour}, {"poll", c.Poll, 50 * time.Millisecond, time.Hour}} {
		if d.value != 0 && (d.value < d.low || d.value > d.high) {
			f.Add(at+"."+d.key, "", "want %s to %s, got %s", d.low, d.high, d.value)
		}
	}
	if c.MaxMB < 0 || c.MaxMB > 4096 {
		f.Add(at+".maxMB", "", "want 1 to 4096, got %d", c.MaxMB)
	}
	if c.Workstation != "" && !protocol.ValidID(c.Workstation) {
		f.Add(at+".workstation", "letters, digits, _ and -, at most 64", "not an id: %q", c.Workstation)
	}
	for _, said := range slices.Sorted(maps.Keys(c.Workstations)) {
		if ours := fmt.Sprint(c.Workstations[said]); !protocol.ValidID(ours) {
			f.Add(at+".workstations."+said, "letters, digits, _ and -, at most 64", "not an id: %q", ours)
		}
	}
	if _, ok := protocol.CurrencyExponent(c.Currency); c.Currency != "" && !ok {
		f.Add(at+".currency", "an ISO 4217 code such as SEK", "unknown currency %q", c.Currency)
	}
	if _, err := time.LoadLocation(c.Zone); err != nil {
		f.Add(at+".zone", "such as Europe/Stockholm", "unknown zone %q", c.Zone)
	}
	for _, said := range slices.Sorted(maps.Keys(c.Tenders)) {
		if ours := fmt.Sprint(c.Tenders[said]); !tenderTypes[ours] {
			f.Add(at+".tenders."+said, "", "want one of %q, got %q", slices.Sorted(maps.Keys(tenderTypes)), ours)
		}
	}
	for _, said := range slices.Sorted(maps.Keys(c.Statuses)) {
		if ours := fmt.Sprint(c.Statuses[said]); word(ours) == "" {
			f.Add(at+".statuses."+said, "sale, void, or a word such as suspended", "not a word: %q", ours)
		}
	}
}
