package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// A transaction is one receipt: what the till said, and what the ledger says of it.
type transaction struct {
	Number      int64                    `json:"number" doc:"Running number per store and type, without gaps"`
	Pos         int64                    `json:"pos" doc:"Position in the chain's order"`
	Store       string                   `json:"store"`
	Type        protocol.TransactionType `json:"type" enum:"sale,return,void,control"`
	ReceivedAt  time.Time                `json:"receivedAt" doc:"When the relay stored it"`
	Voided      bool                     `json:"voided" doc:"A later void undid it: it counts nowhere"`
	Flags       []string                 `json:"flags" nullable:"false" doc:"Where the till contradicts itself: totalDiffers, tendersDiffer, taxDiffers, typeDiffers, endBeforeBegin; and voided"`
	Computed    computed                 `json:"computed" doc:"What the lines and tenders add up to, beside what the till says"`
	Transaction body                     `json:"transaction"`
}

// Computed sums leave struck-out lines aside.
type computed struct {
	Total   int64 `json:"total" doc:"Lines and rounding"`
	Tax     int64 `json:"tax" doc:"VAT of the lines"`
	Tenders int64 `json:"tenders" doc:"Payments less change"`
}

func transactionOf(row *ledger.TransactionRow) (transaction, error) {
	var said protocol.Transaction
	if err := json.Unmarshal(row.Body, &said); err != nil {
		return transaction{}, fmt.Errorf("read transaction at %d: %w", row.Pos, err)
	}
	t := transaction{Number: row.Number, Pos: row.Pos, Store: row.Store, Type: row.Type, ReceivedAt: row.Received, Voided: row.Voided,
		Flags: row.Flags, Computed: computed{Total: said.Rounding}, Transaction: body(row.Body)}
	if t.Flags == nil {
		t.Flags = []string{}
	}
	for i := range said.Lines {
		if l := &said.Lines[i]; !l.Voided {
			t.Computed.Total += l.ExtendedAmount
			t.Computed.Tax += l.TaxAmount
		}
	}
	for _, tender := range said.Tenders {
		t.Computed.Tenders += tender.Amount
	}
	return t, nil
}

type storeDayPage struct {
	Store  string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Day    string `query:"day" format:"date" required:"true" doc:"Business day"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Cursor string `query:"cursor" maxLength:"100" doc:"next of the page before"`
}

// open reads the common parts of a request for a page of a store's day.
func (a *api) open(ctx context.Context, in *storeDayPage) (ledger.Token, protocol.Day, cursor, error) {
	token, err := storeToken(ctx, in.Store)
	if err != nil {
		return token, protocol.Day{}, cursor{}, err
	}
	day, err := parseDay("day", in.Day)
	if err != nil {
		return token, day, cursor{}, err
	}
	c, err := a.cursor(ctx, token.Chain, "cursor", in.Cursor)
	return token, day, c, err
}

// cursor reads a cursor as one of the present incarnation.
func (a *api) cursor(ctx context.Context, chain, name, s string) (cursor, error) {
	c, err := readCursor(name, s)
	if err != nil {
		return c, err
	}
	head, incarnation, err := a.Ledger.Head(ctx, chain)
	return c.carry(head, incarnation), err
}

type runningInput struct {
	Store string `query:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Type  string `query:"type" enum:"sale,return,void,control"`
	After string `query:"after" maxLength:"100" doc:"Exclusive: the last number received, with store and type; otherwise next of the page before"`
	From  int64  `query:"from" minimum:"1" doc:"Inclusive: the first number wanted, with store and type"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

func (a *api) transactions() {
	handle(a, http.MethodGet, "/v1/stores/{store}/transactions", "listTransactions", ScopeTransactions, "All transactions of a business day and store, with lines, tenders and tax",
		func(ctx context.Context, in *storeDayPage) (page[transaction], error) {
			token, day, c, err := a.open(ctx, in)
			if err != nil {
				return page[transaction]{}, err
			}
			rows, more, err := a.Ledger.Transactions(ctx, ledger.TransactionQuery{Chain: token.Chain, Store: in.Store, Day: day, From: c.pos + 1, Limit: in.Limit})
			if err != nil {
				return page[transaction]{}, err
			}
			return pageOf(token, rows, more, c)
		})
	handle(a, http.MethodGet, "/v1/transactions/running", "runningTransactions", ScopeTransactions, "Transactions after the last one received, oldest first", a.running)
}

// running serves numbers per store and type, or positions of the chain.
func (a *api) running(ctx context.Context, in *runningInput) (page[transaction], error) {
	token := tokenOf(ctx)
	if in.Store != "" {
		var err error
		if token, err = storeToken(ctx, in.Store); err != nil {
			return page[transaction]{}, err
		}
	}
	if in.After != "" && in.From != 0 {
		return page[transaction]{}, huma.Error400BadRequest("give after (exclusive) or from (inclusive), not both")
	}
	query := ledger.TransactionQuery{Chain: token.Chain, Store: in.Store, Type: protocol.TransactionType(in.Type), Limit: in.Limit}
	if in.Store != "" && in.Type != "" {
		return a.runningNumbers(ctx, in, query)
	}
	if in.From != 0 {
		return page[transaction]{}, huma.Error400BadRequest("from is a number per store and type: give store and type with it")
	}
	if _, err := strconv.ParseInt(in.After, 10, 64); err == nil {
		return page[transaction]{}, huma.Error400BadRequest("after is a number, which is one per store and type: give store and type with it, or a next as it was given")
	}
	c, err := a.cursor(ctx, token.Chain, "after", in.After)
	if err != nil {
		return page[transaction]{}, err
	}
	for range 20 { // a token for few stores of many: look further than one page, but not for ever
		query.From = c.pos + 1
		rows, more, err := a.Ledger.Transactions(ctx, query)
		if err != nil {
			return page[transaction]{}, err
		}
		p, err := pageOf(token, rows, more, c)
		if err != nil || len(p.Items) > 0 || !more {
			return p, err
		}
		c.pos = rows[len(rows)-1].Pos
	}
	return page[transaction]{Items: []transaction{}, More: true, Next: c.String()}, nil
}

func (a *api) runningNumbers(ctx context.Context, in *runningInput, query ledger.TransactionQuery) (page[transaction], error) {
	after := max(in.From-1, 0)
	if in.After != "" {
		var err error
		if after, err = strconv.ParseInt(in.After, 10, 64); err != nil || after < 0 {
			return page[transaction]{}, huma.Error400BadRequest("after: want the last number received, 0 for none, got " + strconv.Quote(in.After))
		}
	}
	query.From = after + 1
	rows, more, err := a.Ledger.Transactions(ctx, query)
	if err != nil {
		return page[transaction]{}, err
	}
	p, err := pageOf(tokenOf(ctx), rows, more, cursor{})
	if len(rows) > 0 {
		after = rows[len(rows)-1].Number
	}
	p.Next = strconv.FormatInt(after, 10)
	return p, err
}

// pageOf is the rows that the token may see; next goes on behind the last row, seen or not.
func pageOf(token ledger.Token, rows []ledger.TransactionRow, more bool, c cursor) (page[transaction], error) {
	p := page[transaction]{Items: make([]transaction, 0, len(rows)), More: more}
	for i := range rows {
		c.pos = rows[i].Pos
		if !sees(token, rows[i].Store) {
			continue
		}
		t, err := transactionOf(&rows[i])
		if err != nil {
			return p, err
		}
		p.Items = append(p.Items, t)
	}
	p.Next = c.String()
	return p, nil
}
