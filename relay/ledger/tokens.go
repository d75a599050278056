package ledger

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// CreateToken makes a token and gives its secret, the only time that it is seen: the ledger
// keeps its SHA-256. An ID is drawn when t has none; Created is filled in.
func (l *Ledger) CreateToken(ctx context.Context, t Token) (secret string, err error) {
	if !protocol.ValidID(t.Chain) {
		return "", fmt.Errorf("create token: chain %q is not an id", t.Chain)
	}
	if t.ID == "" {
		id := make([]byte, 8)
		rand.Read(id) // never fails
		t.ID = hex.EncodeToString(id)
	}
	random := make([]byte, 32)
	rand.Read(random)
	secret = "slt_" + base64.RawURLEncoding.EncodeToString(random)
	sha := sha256.Sum256([]byte(secret))
	scopes, err := json.Marshal(append([]string{}, t.Scopes...))
	if err != nil {
		return "", fmt.Errorf("create token: %w", err)
	}
	stores, err := json.Marshal(append([]string{}, t.Stores...))
	if err != nil {
		return "", fmt.Errorf("create token: %w", err)
	}
	made := false
	err = l.exec(ctx, statement{
		text: "INSERT INTO tokens (id, sha256, chain, name, scopes, stores, created) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING 1",
		args: []any{storable(t.ID), sha[:], t.Chain, storable(t.Name), storable(string(scopes)), storable(string(stores)), l.now().UnixMicro()},
		scan: func(scanner) error { made = true; return nil },
	})
	if err == nil && !made {
		err = ErrExists
	}
	if err != nil {
		return "", fmt.Errorf("create token %s: %w", t.ID, err)
	}
	return secret, nil
}

const tokenColumns = "id, chain, name, scopes, stores, created"

func scanToken(row scanner, t *Token) error {
	var scopes, stores string
	var created int64
	if err := row.Scan(&t.ID, &t.Chain, &t.Name, &scopes, &stores, &created); err != nil {
		return err
	}
	t.Created = micros(created)
	return errors.Join(json.Unmarshal([]byte(scopes), &t.Scopes), json.Unmarshal([]byte(stores), &t.Stores))
}

// TokenOf gives the token that a secret belongs to; ErrNotFound when there is none.
func (l *Ledger) TokenOf(ctx context.Context, secret string) (Token, error) {
	sha := sha256.Sum256([]byte(secret))
	var t Token
	err := scanToken(l.db.read().QueryRowContext(ctx, "SELECT "+tokenColumns+" FROM tokens WHERE sha256 = $1", sha[:]), &t)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	return t, nil
}

// Tokens lists the chain's tokens, oldest first.
func (l *Ledger) Tokens(ctx context.Context, chain string) ([]Token, error) {
	found, err := l.db.read().QueryContext(ctx, "SELECT "+tokenColumns+" FROM tokens WHERE chain = $1 ORDER BY created, id", chain)
	if err != nil {
		return nil, fmt.Errorf("tokens of chain %s: %w", chain, err)
	}
	defer found.Close()
	var all []Token
	for found.Next() {
		var t Token
		if err := scanToken(found, &t); err != nil {
			return nil, fmt.Errorf("tokens of chain %s: %w", chain, err)
		}
		all = append(all, t)
	}
	if err := found.Err(); err != nil {
		return nil, fmt.Errorf("tokens of chain %s: %w", chain, err)
	}
	return all, nil
}

// DeleteToken ends a token; ErrNotFound when the chain has none of that id.
func (l *Ledger) DeleteToken(ctx context.Context, chain, id string) error {
	found := false
	err := l.exec(ctx, statement{
		text: "DELETE FROM tokens WHERE chain = $1 AND id = $2 RETURNING 1",
		args: []any{chain, id},
		scan: func(scanner) error { found = true; return nil },
	})
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("delete token %s of chain %s: %w", id, chain, err)
	}
	return nil
}
