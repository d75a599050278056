package ledger_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

// benchBatches makes each of the agents' next batches of transactions of about 300 bytes,
// each agent in a store of its own.
type benchAgent struct {
	*agent
	next int64
}

func (a *benchAgent) fill(size int) protocol.Batch {
	var fresh []protocol.Record
	if a.seq == 0 {
		fresh = append(fresh, seal(a.t, nil, false))
	}
	for len(fresh) < size {
		a.next++
		body := fmt.Appendf(nil, `{"store":%q,"workstation":"1","businessDay":"2026-03-02","sequenceNumber":%d,"type":"sale","begin":"2026-03-02T12:00:00+01:00","end":"2026-03-02T12:00:09+01:00","currency":"SEK",`+
			`"lines":[{"type":"sale","item":"A%d","quantity":{"milli":1000},"extendedAmount":12900,"taxAmount":2580,"taxRate":2500}],"tenders":[{"type":"card","amount":12900}],"total":12900}`, a.from.Store, a.next, a.next%200)
		fresh = append(fresh, protocol.Record{Kind: protocol.KindTransaction, At: noon, Mono: a.next, Day: day, Body: body})
	}
	return a.batch(fresh...)
}

// BenchmarkCommit is 50 agents that each wait for their ack; an operation is one record.
func BenchmarkCommit(b *testing.B) {
	for _, name := range []string{"sqlite", "postgres"} {
		for _, size := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("%s/batch=%d", name, size), func(b *testing.B) {
				url := benchURL(b, name)
				l, _ := open(b, url)
				agents := make([]*benchAgent, 50)
				for i := range agents {
					store := fmt.Sprintf("%04d", i)
					agents[i] = &benchAgent{agent: newAgent(b, store, "pc", i+1)}
					if err := l.RegisterAgent(b.Context(), agents[i].from); err != nil {
						b.Fatal(err)
					}
				}
				var left atomic.Int64
				left.Store(int64(b.N))
				b.ResetTimer()
				var wg sync.WaitGroup
				for _, a := range agents {
					wg.Go(func() {
						for left.Add(-int64(size)) > -int64(size) {
							answer, err := l.Commit(context.Background(), a.from, a.fill(size))
							if err != nil || answer.Verdict != protocol.VerdictAck {
								b.Errorf("%+v, %v", answer, err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			})
		}
	}
}

func benchURL(b *testing.B, name string) string {
	if name == "sqlite" {
		return sqliteURL(b)
	}
	return ledgertest.Postgres(b)
}

// The columns of a transaction's row in the log, without the projections.
const rawColumns = "chain, pos, stream, seq, store, kind, at, mono, day, received, hash, body, business_day, type, number, voided"

func rawRow(i int64, body []byte) []any {
	return []any{int64(1), i, i%50 + 1, i/50 + 1, fmt.Sprintf("%04d", i%50), "transaction", noon, i, "2026-03-02", i, body[:32], body, "2026-03-02", "sale", i/50 + 1, int64(0)}
}

// BenchmarkRawInsert is the yardstick of BenchmarkCommit: the same rows of records, with the
// same indexes, 1000 in a transaction, by COPY (PostgreSQL) or prepared INSERTs of 50 rows
// (SQLite), without anything that makes them right.
func BenchmarkRawInsert(b *testing.B) {
	a := &benchAgent{agent: newAgent(b, "0001", "pc", 1)}
	body := a.fill(2).Records[1].Body
	b.Run("sqlite", func(b *testing.B) {
		url := sqliteURL(b)
		_, stop := open(b, url)
		stop()
		db, err := sql.Open("sqlite", "file:"+strings.TrimPrefix(url, "sqlite:")+"?_pragma=synchronous(full)")
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		row := "(?" + strings.Repeat(",?", 15) + ")"
		insert, err := db.Prepare("INSERT INTO records (" + rawColumns + ") VALUES " + row + strings.Repeat(","+row, 49))
		if err != nil {
			b.Fatal(err)
		}
		defer insert.Close()
		b.ResetTimer()
		for i := int64(0); i < int64(b.N); {
			tx, err := db.Begin()
			if err != nil {
				b.Fatal(err)
			}
			for range 20 {
				var values []any
				for range 50 {
					values = append(values, rawRow(i, body)...)
					i++
				}
				if _, err := tx.Stmt(insert).Exec(values...); err != nil { //nolint:sqlclosecheck // it ends with tx
					b.Fatal(err)
				}
			}
			if err := tx.Commit(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	})
	b.Run("postgres", func(b *testing.B) {
		url := ledgertest.Postgres(b)
		_, stop := open(b, url)
		stop()
		conn, err := pgx.Connect(b.Context(), url)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close(context.Background())
		b.ResetTimer()
		for i := int64(0); i < int64(b.N); {
			var rows [][]any
			for range 1000 {
				rows = append(rows, rawRow(i, body))
				i++
			}
			if _, err := conn.CopyFrom(b.Context(), pgx.Identifier{"records"}, strings.Split(rawColumns, ", "), pgx.CopyFromRows(rows)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	})
}
