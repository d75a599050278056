package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
)

// The states of a day, and how far they are proven.
const (
	DayComplete   = "complete"
	DayIncomplete = "incomplete"
	DaySettled    = "settled" // incomplete, and head office has explained each reason: not proven to be complete

	Unproven       = "unproven"
	unprovenReason = "Z-reports and grand totals are not joined yet: they come with the day's books"
)

// certificateFormat is the first member of every certificate; another form gets another
// number.
const certificateFormat = "storelay day certificate 1"

// A DayCertificate says of a store's business day whether everything that its agents accepted
// is in the ledger, and if not, what is not (docs/certificate.md).
type DayCertificate struct {
	Format      string       `json:"format"`
	Chain       string       `json:"chain"`
	Store       string       `json:"store"`
	Day         protocol.Day `json:"day"`
	State       string       `json:"state" enum:"complete,incomplete,settled" doc:"Settled: head office has explained each reason; nothing proves that the day is complete"`
	Reasons     []Reason     `json:"reasons" nullable:"false" doc:"Why the day is incomplete, or settled; none when it is complete"`
	Proof       string       `json:"proof" enum:"unproven" doc:"Whether the tills' own totals of the day agree"`
	ProofReason string       `json:"proofReason"`
	Version     int64        `json:"version" doc:"1, 2 ...; 0 while the day is open, or when the store had sent nothing by its end: such a one is not kept"`
	Restates    *Restatement `json:"restates,omitempty" doc:"Of a version behind the first: what the one before said otherwise"`
	IssuedAt    time.Time    `json:"issuedAt"`
	Incarnation int64        `json:"incarnation" doc:"Of the ledger"`
	Position    int64        `json:"position" doc:"The chain's last position when it was made"`
	Records     []KindCount  `json:"records" nullable:"false" doc:"Applied records of the day"`
	Agents      []AgentDay   `json:"agents" nullable:"false" doc:"Agents that are expected"`
	Tills       []TillDay    `json:"workstations" nullable:"false" doc:"Tills that are expected, or have sent something"`
	Counters    []CounterDay `json:"counters" nullable:"false" doc:"Counters that are expected, or have counted"`
	Holes       []HoleOfDay  `json:"holes" nullable:"false" doc:"Records that an agent accepted and does not hold any more"`
	Quarantined []HeldRecord `json:"quarantined" nullable:"false" doc:"Records that were received and not applied"`
	Alarms      []DayAlarm   `json:"alarms" nullable:"false" doc:"Alarms that cast doubt on the day"`
}

// The kinds of reasons why a day is incomplete.
const (
	ReasonOpen       = "open"        // the day has not ended
	ReasonNobody     = "nobody"      // no agent of the store was known then
	ReasonDayMark    = "dayMark"     // an expected agent has not marked the day
	ReasonSignature  = "signature"   // the mark is not signed by its agent
	ReasonStream     = "stream"      // what was marked is not all there as it was sent
	ReasonHole       = "hole"        // an agent has lost records of the day
	ReasonTill       = "workstation" // numbers of a till are missing, or it is silent
	ReasonCounter    = "counter"     // footfall is not covered
	ReasonQuarantine = "quarantined" // records were not applied
	ReasonAlarm      = "alarm"       // a cloned or rolled-back disk
)

// A Reason names one hole.
type Reason struct {
	Kind string `json:"kind" enum:"open,nobody,dayMark,signature,stream,hole,workstation,counter,quarantined,alarm"`
	Who  string `json:"who" doc:"Agent, till or counter"`
	What string `json:"what" doc:"One sentence"`
	// Settled is head office's word on it.
	Settled *Settled `json:"settled,omitempty" doc:"Head office has explained it; what is missing is missing all the same"`
}

// A Restatement names what a certificate says otherwise than the one before it.
type Restatement struct {
	Version  int64     `json:"version"`
	IssuedAt time.Time `json:"issuedAt"`
	Position int64     `json:"position"`
	Changes  []string  `json:"changes" nullable:"false"`
}

// A KindCount counts the records of one kind.
type KindCount struct {
	Kind  string `json:"kind"`
	Count int64  `json:"count"`
}

// An AgentDay is what an agent has signed of the day, and whether the ledger has it.
type AgentDay struct {
	Agent    string     `json:"agent"`
	Mark     *MarkOfDay `json:"mark,omitempty" doc:"Its newest day mark; absent = none"`
	Signed   bool       `json:"signed" doc:"The mark is signed by the agent, whose certificate comes from the certificate authority"`
	Complete bool       `json:"complete" doc:"Every record up to the mark is in the ledger as it was sent"`
	Problem  string     `json:"problem" doc:"Why not"`
}

// A MarkOfDay is an agent's signed word that everything it accepted on the day, and before it,
// stands at or before Head.
type MarkOfDay struct {
	Epoch       protocol.Epoch `json:"epoch" doc:"Where the mark itself stands"`
	Seq         uint64         `json:"seq"`
	Head        protocol.Mark  `json:"head"`
	Signature   []byte         `json:"signature" doc:"ECDSA, ASN.1, over the SHA-256 of the mark's text"`
	Certificate []byte         `json:"certificate" doc:"The agent's certificate, DER; empty when it is not kept"`
}

// A TillDay is what the ledger has of a till's running numbers of the day.
type TillDay struct {
	Workstation string        `json:"workstation"`
	Expected    bool          `json:"expected"`
	First       int64         `json:"first" doc:"0 = it has sent nothing"`
	Last        int64         `json:"last"`
	Wrapped     bool          `json:"wrapped,omitempty" doc:"Its numbers reached their highest one and began again at 1: last is of the second run"`
	Count       int64         `json:"count" doc:"Receipts applied"`
	Voided      int64         `json:"voided" doc:"Of which a later void undid"`
	Repeated    int64         `json:"repeated" doc:"Receipts that came again with the same content, and were not applied again"`
	Conflicts   int64         `json:"conflicts" doc:"Receipts that came again with other content, and are in quarantine"`
	Missing     []NumberRange `json:"missing" nullable:"false"`
	Numbering   string        `json:"numbering" enum:"continued,daily,unknown" doc:"Whether its numbers go on from day to day"`
}

// A NumberRange is a stretch of sequence numbers, both ends included.
type NumberRange struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// A CounterDay says how much of the business day a counter's counts cover.
type CounterDay struct {
	Counter  string      `json:"counter"`
	Expected bool        `json:"expected"`
	Seconds  int64       `json:"seconds" doc:"Of the day; from its first count on when it is new"`
	Covered  int64       `json:"covered" doc:"Of which counts cover, in seconds"`
	Permille int64       `json:"permille" doc:"The covered share, in thousandths, rounded down"`
	Counts   int64       `json:"counts"`
	Doubtful int64       `json:"doubtful" doc:"Counts whose quality is not ok or wrap"`
	Gaps     []TimeRange `json:"gaps" nullable:"false"`
}

// A TimeRange is [From, To).
type TimeRange struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// A HoleOfDay names records that an agent accepted once and does not hold any more.
type HoleOfDay struct {
	Agent  string         `json:"agent"`
	Epoch  protocol.Epoch `json:"epoch"`
	From   uint64         `json:"from"`
	To     uint64         `json:"to"`
	Reason string         `json:"reason"`
}

// A HeldRecord is in quarantine.
type HeldRecord struct {
	ID     int64          `json:"id"`
	Agent  string         `json:"agent"`
	Epoch  protocol.Epoch `json:"epoch"`
	Seq    uint64         `json:"seq"`
	Kind   string         `json:"kind"`
	Reason string         `json:"reason"`
}

// A DayAlarm is an alarm about one of the store's agents.
type DayAlarm struct {
	Agent  string    `json:"agent"`
	Kind   string    `json:"kind"`
	Detail string    `json:"detail"`
	At     time.Time `json:"at"`
}

// A SignedCertificate is the file that is given out. The signature is Ed25519 over the bytes
// of Certificate without white space between them.
type SignedCertificate struct {
	Certificate json.RawMessage `json:"certificate"`
	Signature   []byte          `json:"signature"`
	SignedBy    []byte          `json:"signedBy"` // X.509, DER
}

// DayCertificate gives the certificate of a store's business day. When what it states has
// changed since the last one that was given out it is a new version, which is kept; otherwise
// it is that one, byte by byte. A version above 0 asks for one that was given out. The day's
// certificate while the day is open, or of a day before the store began, is version 0 and not
// kept. ErrNotFound: no such store or version.
func (l *Ledger) DayCertificate(ctx context.Context, chain, store string, day protocol.Day, version int64) ([]byte, error) {
	id, err := l.chainID(ctx, chain, false)
	var file []byte
	switch {
	case err != nil:
	case l.ca == nil:
		err = errNoAuthority
	case version > 0:
		file, err = l.issued(ctx, id, store, day, version)
	default:
		file, err = l.certify(ctx, id, chain, store, day)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate of store %s for %s: %w", store, day, err)
	}
	return file, nil
}

func (l *Ledger) issued(ctx context.Context, id int64, store string, day protocol.Day, version int64) ([]byte, error) {
	var file []byte
	err := l.db.read().QueryRowContext(ctx, "SELECT body FROM day_certificates WHERE chain = $1 AND store = $2 AND day = $3 AND version = $4",
		id, store, day.String(), version).Scan(&file)
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("version %d: %w", version, ErrNotFound)
	}
	return file, err
}

// certify makes a certificate, or finds that the last one still holds. The last one is read
// before the day is looked at: of two who make the next version at once one is too late, and
// looks again.
func (l *Ledger) certify(ctx context.Context, id int64, chain, store string, day protocol.Day) ([]byte, error) {
	for {
		var last int64
		var lastDigest, lastFile []byte
		err := l.db.read().QueryRowContext(ctx, "SELECT version, digest, body FROM day_certificates WHERE chain = $1 AND store = $2 AND day = $3 ORDER BY version DESC LIMIT 1",
			id, store, day.String()).Scan(&last, &lastDigest, &lastFile)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		now := l.now().UTC()
		c, open, begun, err := l.lookAt(ctx, id, chain, store, day, now)
		if err != nil {
			return nil, err
		}
		c.IssuedAt = now.Truncate(time.Second)
		if open || !begun && last == 0 {
			return l.signed(c)
		}
		digest, err := c.digest()
		if err != nil {
			return nil, err
		}
		if last > 0 {
			if bytes.Equal(digest, lastDigest) {
				return lastFile, nil
			}
			before, _, err := openCertificate(lastFile)
			if err != nil {
				return nil, fmt.Errorf("version %d, which was given out: %w", last, err)
			}
			c.Restates = &Restatement{Version: last, IssuedAt: before.IssuedAt, Position: before.Position, Changes: before.changes(c)}
		}
		c.Version = last + 1
		file, err := l.signed(c)
		if err != nil {
			return nil, err
		}
		made := false
		err = l.exec(ctx, statement{
			text: `INSERT INTO day_certificates (chain, store, day, version, state, issued, digest, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
				ON CONFLICT DO NOTHING RETURNING 1`,
			args: []any{id, store, day.String(), c.Version, c.State, c.IssuedAt.UnixMicro(), digest, file},
			scan: func(scanner) error { made = true; return nil },
		})
		if err != nil || made {
			return file, err
		}
	}
}

// signed makes the file of a certificate.
func (l *Ledger) signed(c *DayCertificate) ([]byte, error) {
	body, err := canonical(c)
	if err != nil {
		return nil, err
	}
	signature, certificate, err := l.ca.Sign(body)
	if err != nil {
		return nil, err
	}
	return canonical(SignedCertificate{body, signature, certificate})
}

// digest is over what a certificate states, without when, as which version and at which
// position of the ledger.
func (c *DayCertificate) digest() ([]byte, error) {
	content := *c
	content.Version, content.Restates, content.IssuedAt, content.Incarnation, content.Position = 0, nil, time.Time{}, 0, 0
	body, err := canonical(content)
	sum := sha256.Sum256(body)
	return sum[:], err
}

// canonical is JSON without white space, members in the order of the type, and no escapes but
// those that JSON needs: what other programs write of what they read, too.
func canonical(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// printable makes text that comes from elsewhere fit for a certificate: short, and without
// characters that programs escape in different ways.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if short := []rune(s); len(short) > 300 {
		s = string(short[:299]) + "…"
	}
	return s
}

// ErrCertificate means that a file is not a certificate that was given out as it is.
var ErrCertificate = errors.New("not a certificate of completeness")

// ReadDayCertificate reads a certificate's file and checks, with nothing but the certificate
// authorities, that it was signed by a relay of theirs, and each agent's own signature that it
// carries. White space between the file's members does not matter, everything else does.
// Errors are ErrCertificate or ca.ErrSignature.
func ReadDayCertificate(file []byte, roots *ca.Roots) (*DayCertificate, error) {
	c, signed, err := openCertificate(file)
	if err != nil {
		return nil, err
	}
	if err := roots.Signed(signed.SignedBy, signed.Certificate, signed.Signature); err != nil {
		return nil, err
	}
	if want := stateOf(c.Reasons); c.State != want {
		return nil, fmt.Errorf("%w: it says that it is %s, and its %d reasons say %s", ErrCertificate, c.State, len(c.Reasons), want)
	}
	for i := range c.Agents {
		a := &c.Agents[i]
		if !a.Signed {
			continue
		}
		if a.Mark == nil {
			return nil, fmt.Errorf("%w: the mark of agent %s is missing", ErrCertificate, a.Agent)
		}
		from := protocol.Origin{Chain: c.Chain, Store: c.Store, Agent: a.Agent}
		if err := a.Mark.check(from, c.Day, roots); err != nil {
			return nil, fmt.Errorf("%w: the mark of agent %s: %w", ErrCertificate, a.Agent, err)
		}
	}
	return c, nil
}

// openCertificate reads a file without checking who signed it.
func openCertificate(file []byte) (*DayCertificate, *SignedCertificate, error) {
	signed, err := splitSigned(file)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	var c DayCertificate
	dec := json.NewDecoder(bytes.NewReader(signed.Certificate))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if c.Format != certificateFormat {
		return nil, nil, fmt.Errorf("%w: its format is %q, want %q", ErrCertificate, c.Format, certificateFormat)
	}
	again, err := canonical(c)
	if err != nil || !bytes.Equal(again, signed.Certificate) {
		return nil, nil, fmt.Errorf("%w: it is not written as relays write it", ErrCertificate)
	}
	return &c, signed, nil
}

// splitSigned takes the members of the file apart. Written again they must give the same
// bytes: no member twice, so that no two programs take different ones for the signed one, none
// beside, and no other form of the same signature.
func splitSigned(file []byte) (*SignedCertificate, error) {
	var bare bytes.Buffer
	if err := json.Compact(&bare, file); err != nil {
		return nil, err
	}
	var signed SignedCertificate
	if err := json.Unmarshal(bare.Bytes(), &signed); err != nil {
		return nil, err
	}
	again, err := canonical(signed)
	if err != nil || !bytes.Equal(again, bare.Bytes()) {
		return nil, errors.New("it is not written as relays write it")
	}
	return &signed, nil
}

// check verifies the agent's signature, with a certificate that the authorities gave it.
func (m *MarkOfDay) check(from protocol.Origin, day protocol.Day, roots *ca.Roots) error {
	cert, err := x509.ParseCertificate(m.Certificate)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	named, err := roots.Agent(cert)
	if err != nil {
		return err
	}
	if named != from {
		return fmt.Errorf("the certificate is that of %s", named)
	}
	mark := protocol.DayMark{Day: day, Head: m.Head, Certificate: sha256.Sum256(m.Certificate), Signature: m.Signature}
	return mark.Verify(from, cert)
}
