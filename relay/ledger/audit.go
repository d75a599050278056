package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
)

// AuditOptions say what to audit.
type AuditOptions struct {
	Chain string // "" = all
	Store string // "" = all, and with them what belongs to the chain as a whole
	// TrustAlarms lets an alarm speak for seals that disagree with the ledger where nothing signed
	// does, and the quarantine for what it holds. Nobody signs either: whoever can change the ledger
	// can write them, too.
	TrustAlarms bool
	// Recount computes every other projection anew, too: it needs memory for all their rows.
	Recount bool
	// Roots are the authorities that certified the agents and the relay's signing key.
	Roots *ca.Roots
	// Progress hears now and then how many records have been read; nil = nobody does.
	Progress func(chain, store string, records int64)
}

// The kinds of findings, beside those of streams: changed, missing, inserted, swapped.
const (
	wrongColumns     = "columns"     // what a row says beside the record is not what the record says
	wrongMark        = "mark"        // a day mark that its agent did not sign, or that is not as it was committed
	wrongSeal        = "seal"        // an epoch that does not follow the one that it names
	wrongAlarm       = "alarm"       // an alarm, or the quarantine, says what nobody signed; or an alarm that was raised is gone
	wrongPosition    = "position"    // positions or numbers with a gap, or out of order
	wrongProjection  = "projection"  // sums that the records do not give
	wrongCertificate = "certificate" // a certificate given out that does not hold
)

// A Finding is the first thing of its kind that is not as agents and relay wrote it.
type Finding struct {
	Chain string
	Store string         // "" = of the chain as a whole
	Agent string         // "" = of no single agent
	Epoch protocol.Epoch // "" = of no single stream
	Seq   uint64         // first record; 0 = of no record
	Last  uint64         // last record of a stretch
	Pos   int64          // position of the first record; 0 = it has none
	Kind  string
	What  string
}

func (f Finding) String() string {
	var parts []string
	add := func(ok bool, format string, args ...any) {
		if ok {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(true, "chain %s", f.Chain)
	add(f.Store != "", "store %s", f.Store)
	add(f.Agent != "", "agent %s", f.Agent)
	add(f.Epoch != "", "epoch %s", f.Epoch)
	add(f.Seq != 0, "%s", numbered("record", f.Seq, max(f.Seq, f.Last)))
	add(f.Pos != 0, "position %d", f.Pos)
	return fmt.Sprintf("%s: %s: %s", strings.Join(parts, ", "), f.Kind, f.What)
}

// An AuditReport is what an audit saw.
type AuditReport struct {
	Findings     []Finding // none = everything is as agents and relay wrote it
	Streams      int64
	Records      int64     // applied or not
	Unsigned     int64     // of which no signed mark covers
	Marks        int64     // whose signature holds
	Certificates int64     // that hold
	Holes        int64     // named ones: records that agents have lost
	Unkept       int64     // duplicates of which an older version kept the hash alone
	Alarms       []Finding // what alarms or the quarantine alone speak for; among the Findings, too, if they are not trusted
}

// maxFindings is how many findings are told of one store.
const maxFindings = 200

// Audit looks at everything that the database holds with nothing but the certificate
// authorities to trust: every record's hash, the chain of hashes, seals, holes, the agents'
// signed day marks, the rows beside the records, positions and numbers, and the certificates
// given out. Memory is bounded by the rows of a store's streams and days. A ledger that works
// on meanwhile is looked at in snapshots. An error means that the audit was not finished.
func (l *Ledger) Audit(ctx context.Context, opts AuditOptions) (*AuditReport, error) {
	report := &AuditReport{}
	type row struct {
		id   int64
		name string
	}
	chains, err := ask(ctx, l.db.read(), "SELECT id, name FROM chains ORDER BY name", nil, func(s scanner, r *row) error { return s.Scan(&r.id, &r.name) })
	if err != nil {
		return report, fmt.Errorf("audit: %w", err)
	}
	if opts.Chain == "" {
		strays, err := ask(ctx, l.db.read(), "SELECT DISTINCT s.chain FROM streams s WHERE NOT EXISTS (SELECT 1 FROM chains c WHERE c.id = s.chain)", nil, func(s scanner, id *int64) error { return s.Scan(id) })
		if err != nil {
			return report, fmt.Errorf("audit: %w", err)
		}
		for _, id := range strays {
			report.Findings = append(report.Findings, Finding{Chain: fmt.Sprintf("number %d", id), Kind: wrongMissing, What: "there are streams of it, and it has no row"})
		}
	}
	found := false
	for _, c := range chains {
		if opts.Chain != "" && opts.Chain != c.name {
			continue
		}
		found = true
		if err := l.auditChain(ctx, c.id, c.name, opts, report); err != nil {
			return report, fmt.Errorf("audit chain %s: %w", c.name, err)
		}
	}
	if opts.Chain != "" && !found {
		return report, fmt.Errorf("audit chain %s: %w", opts.Chain, ErrNotFound)
	}
	return report, nil
}

func (l *Ledger) auditChain(ctx context.Context, id int64, chain string, opts AuditOptions, report *AuditReport) error {
	stores, err := ask(ctx, l.db.read(), `SELECT store FROM streams WHERE chain = $1 UNION SELECT store FROM day_marks WHERE chain = $1
		UNION SELECT store FROM kpis WHERE chain = $1 UNION SELECT store FROM day_certificates WHERE chain = $1 UNION SELECT id FROM stores WHERE chain = $1
		UNION SELECT store FROM resent WHERE chain = $1 UNION SELECT store FROM quarantined WHERE chain = $1 UNION SELECT store FROM holes WHERE chain = $1`, []any{id},
		func(row scanner, store *string) error { return row.Scan(store) })
	if err != nil {
		return err
	}
	slices.Sort(stores)
	if opts.Store != "" {
		if !slices.Contains(stores, opts.Store) {
			return fmt.Errorf("store %s: %w", opts.Store, ErrNotFound)
		}
		stores = []string{opts.Store}
	}
	for _, store := range stores {
		err := l.inSnapshot(ctx, func(q querier) error {
			s := newStoreAudit(reader{q, id}, l, chain, store, opts, report)
			return s.audit(ctx)
		})
		if err != nil {
			return fmt.Errorf("store %s: %w", store, err)
		}
	}
	if opts.Store != "" {
		return nil
	}
	err = l.inSnapshot(ctx, func(q querier) error {
		return (&chainAudit{reader{q, id}, chain, report}).audit(ctx)
	})
	if err != nil || !opts.Recount {
		return err
	}
	differences, err := l.Recount(ctx, chain)
	if err != nil && ctx.Err() == nil {
		report.Findings = append(report.Findings, Finding{Chain: chain, Kind: wrongProjection, What: "cannot be counted anew: " + err.Error()})
		return nil
	}
	for _, d := range differences {
		report.Findings = append(report.Findings, Finding{Chain: chain, Kind: wrongProjection, What: d.String()})
	}
	return err
}
