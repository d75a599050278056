-- +goose Up
-- One set of tables for SQLite and PostgreSQL. Every key begins with the chain, so that the
-- tables can be distributed by chain. Times are microseconds since 1970 UTC, days are ISO
-- dates, flags are 0 or 1.

CREATE TABLE ledger (
    one         bigint NOT NULL PRIMARY KEY CHECK (one = 1),
    incarnation bigint NOT NULL,
    timeline    bigint NOT NULL -- of the PostgreSQL server when last seen; 0 = none
);
INSERT INTO ledger (one, incarnation, timeline) VALUES (1, 1, 0);

-- The row that a commit locks first, and what is handed out under that lock.
CREATE TABLE chains (
    id           bigint NOT NULL PRIMARY KEY,
    name         text   NOT NULL UNIQUE,
    head         bigint NOT NULL, -- last position
    streams      bigint NOT NULL, -- last id of a stream
    quarantined  bigint NOT NULL, -- last id in quarantine
    feed_version bigint NOT NULL, -- last version of a feed
    feed_floor   bigint NOT NULL  -- a cursor below it gets a reset
);

-- Where positions went on after a raise of the incarnation.
CREATE TABLE jumps (
    chain       bigint NOT NULL,
    incarnation bigint NOT NULL,
    head_before bigint NOT NULL,
    head_after  bigint NOT NULL,
    at          bigint NOT NULL,
    PRIMARY KEY (chain, incarnation)
);

CREATE TABLE agents (
    chain     bigint NOT NULL,
    store     text   NOT NULL,
    agent     text   NOT NULL,
    state     text   NOT NULL, -- active, retiring, revoked
    last_seen bigint NOT NULL,
    version   text   NOT NULL,
    PRIMARY KEY (chain, store, agent)
);

CREATE TABLE alarms (
    chain  bigint NOT NULL,
    store  text   NOT NULL,
    agent  text   NOT NULL,
    kind   text   NOT NULL,
    detail text   NOT NULL,
    at     bigint NOT NULL, -- first time
    PRIMARY KEY (chain, store, agent, kind, detail)
);

CREATE TABLE streams (
    chain   bigint NOT NULL,
    id      bigint NOT NULL,
    store   text   NOT NULL,
    agent   text   NOT NULL,
    epoch   text   NOT NULL,
    through bigint NOT NULL,
    hash    bytea  NOT NULL, -- of record through
    sealed  bigint NOT NULL, -- last seq according to the seal of a later epoch; -1 = open
    at      bigint NOT NULL, -- last commit
    PRIMARY KEY (chain, id),
    UNIQUE (chain, store, agent, epoch)
);

-- The log, and on a transaction's row what the ledger knows of it.
CREATE TABLE records (
    chain    bigint NOT NULL,
    pos      bigint NOT NULL,
    stream   bigint NOT NULL,
    seq      bigint NOT NULL,
    store    text   NOT NULL,
    kind     text   NOT NULL,
    at       text   NOT NULL,
    mono     bigint NOT NULL,
    day      text   NOT NULL,
    received bigint NOT NULL,
    hash     bytea  NOT NULL,
    key      bytea,
    body     bytea  NOT NULL,
    -- transactions only:
    business_day text,
    type         text,
    number       bigint,
    voided       bigint,
    PRIMARY KEY (chain, pos)
);
CREATE UNIQUE INDEX records_seq ON records (chain, stream, seq);
CREATE INDEX records_store ON records (chain, store, pos);
CREATE UNIQUE INDEX records_number ON records (chain, store, type, number) WHERE number IS NOT NULL;

-- The business keys of transactions. A table with one index, so that no planner can take
-- another one of the same beginning for a commit's look-ups.
CREATE TABLE business_keys (
    chain        bigint NOT NULL,
    store        text   NOT NULL,
    business_day text   NOT NULL,
    workstation  text   NOT NULL,
    sequence     bigint NOT NULL,
    pos          bigint NOT NULL,
    PRIMARY KEY (chain, store, business_day, workstation, sequence)
);

-- Between which positions the records of a day lie; days by record and by business date.
CREATE TABLE day_spans (
    chain     bigint NOT NULL,
    store     text   NOT NULL,
    day       text   NOT NULL,
    first_pos bigint NOT NULL,
    last_pos  bigint NOT NULL,
    PRIMARY KEY (chain, store, day)
);

-- Received and acknowledged, not applied: the same content is in records or quarantined.
CREATE TABLE duplicates (
    chain  bigint NOT NULL,
    stream bigint NOT NULL,
    seq    bigint NOT NULL,
    hash   bytea  NOT NULL,
    reason text   NOT NULL,
    PRIMARY KEY (chain, stream, seq)
);

CREATE TABLE quarantined (
    chain    bigint NOT NULL,
    id       bigint NOT NULL,
    stream   bigint NOT NULL, -- 0 = the stream did not move over it
    seq      bigint NOT NULL,
    store    text   NOT NULL,
    agent    text   NOT NULL,
    epoch    text   NOT NULL,
    kind     text   NOT NULL,
    day      text   NOT NULL,
    cause    text   NOT NULL, -- kind, body, business, was, database, raw
    reason   text   NOT NULL,
    received bigint NOT NULL,
    hash     bytea  NOT NULL,
    record   bytea  NOT NULL,
    PRIMARY KEY (chain, id),
    UNIQUE (chain, store, agent, epoch, seq)
);

-- Where records that were appended again had been accepted first.
CREATE TABLE resent (
    chain  bigint NOT NULL,
    store  text   NOT NULL,
    agent  text   NOT NULL,
    epoch  text   NOT NULL,
    seq    bigint NOT NULL,
    sha256 bytea  NOT NULL,
    PRIMARY KEY (chain, store, agent, epoch, seq, sha256)
);

-- The transactions that voids name, also those that have not come yet.
CREATE TABLE voids (
    chain        bigint NOT NULL,
    store        text   NOT NULL,
    business_day text   NOT NULL,
    workstation  text   NOT NULL,
    sequence     bigint NOT NULL,
    pos          bigint NOT NULL, -- of the void
    PRIMARY KEY (chain, store, business_day, workstation, sequence)
);

CREATE TABLE numbers (
    chain bigint NOT NULL,
    store text   NOT NULL,
    type  text   NOT NULL,
    last  bigint NOT NULL,
    PRIMARY KEY (chain, store, type)
);

-- The sums stay far from the edge of 64 bits, where SQLite would go on in floating point.
CREATE TABLE kpis (
    chain               bigint NOT NULL,
    store               text   NOT NULL,
    day                 text   NOT NULL,
    currency            text   NOT NULL,
    version             bigint NOT NULL,
    customers           bigint NOT NULL,
    sales_transactions  bigint NOT NULL,
    return_transactions bigint NOT NULL,
    units_sold          bigint NOT NULL CHECK (units_sold BETWEEN -9000000000000000000 AND 9000000000000000000),
    units_returned      bigint NOT NULL CHECK (units_returned BETWEEN -9000000000000000000 AND 9000000000000000000),
    return_lines        bigint NOT NULL,
    gross_sales         bigint NOT NULL CHECK (gross_sales BETWEEN -9000000000000000000 AND 9000000000000000000),
    discounts           bigint NOT NULL CHECK (discounts BETWEEN -9000000000000000000 AND 9000000000000000000),
    returns_amount      bigint NOT NULL CHECK (returns_amount BETWEEN -9000000000000000000 AND 9000000000000000000),
    turnover_incl       bigint NOT NULL CHECK (turnover_incl BETWEEN -9000000000000000000 AND 9000000000000000000),
    turnover_ex         bigint NOT NULL CHECK (turnover_ex BETWEEN -9000000000000000000 AND 9000000000000000000),
    drawer_opens        bigint NOT NULL,
    passages_in         bigint NOT NULL CHECK (passages_in BETWEEN -9000000000000000000 AND 9000000000000000000),
    passages_out        bigint NOT NULL CHECK (passages_out BETWEEN -9000000000000000000 AND 9000000000000000000),
    passages_undirected bigint NOT NULL CHECK (passages_undirected BETWEEN -9000000000000000000 AND 9000000000000000000),
    footfall_counts     bigint NOT NULL,
    footfall_doubtful   bigint NOT NULL,
    PRIMARY KEY (chain, store, day, currency)
);

CREATE TABLE tender_days (
    chain    bigint NOT NULL,
    store    text   NOT NULL,
    day      text   NOT NULL,
    currency text   NOT NULL,
    type     text   NOT NULL,
    count    bigint NOT NULL,
    amount   bigint NOT NULL CHECK (amount BETWEEN -9000000000000000000 AND 9000000000000000000),
    PRIMARY KEY (chain, store, day, currency, type)
);

CREATE TABLE item_days (
    chain      bigint NOT NULL,
    store      text   NOT NULL,
    day        text   NOT NULL,
    currency   text   NOT NULL,
    item       text   NOT NULL,
    item_group text   NOT NULL,
    units      bigint NOT NULL CHECK (units BETWEEN -9000000000000000000 AND 9000000000000000000),
    amount     bigint NOT NULL CHECK (amount BETWEEN -9000000000000000000 AND 9000000000000000000),
    PRIMARY KEY (chain, store, day, currency, item, item_group)
);

CREATE TABLE devices (
    chain  bigint NOT NULL,
    store  text   NOT NULL,
    device text   NOT NULL,
    driver text   NOT NULL,
    class  text   NOT NULL,
    state  text   NOT NULL,
    drawer text   NOT NULL,
    since  bigint NOT NULL,
    reason text   NOT NULL,
    hint   text   NOT NULL,
    PRIMARY KEY (chain, store, device)
);

CREATE TABLE stores (
    chain    bigint NOT NULL,
    id       text   NOT NULL,
    name     text   NOT NULL,
    zone     text   NOT NULL,
    cut_off  text   NOT NULL,
    currency text   NOT NULL,
    PRIMARY KEY (chain, id)
);

CREATE TABLE feeds (
    chain   bigint NOT NULL,
    feed    text   NOT NULL,
    store   text   NOT NULL, -- '' = all stores of the chain
    key     text   NOT NULL,
    version bigint NOT NULL,
    body    bytea, -- null = deleted
    PRIMARY KEY (chain, feed, store, key)
);
CREATE UNIQUE INDEX feeds_version ON feeds (chain, feed, version);

CREATE TABLE cursors (
    chain       bigint NOT NULL,
    connector   text   NOT NULL,
    incarnation bigint NOT NULL,
    pos         bigint NOT NULL,
    PRIMARY KEY (chain, connector)
);

CREATE TABLE dead_letters (
    chain     bigint NOT NULL,
    connector text   NOT NULL,
    pos       bigint NOT NULL,
    attempts  bigint NOT NULL,
    reason    text   NOT NULL,
    at        bigint NOT NULL,
    PRIMARY KEY (chain, connector, pos)
);

-- Looked up by secret before the chain is known, and by name across chains.
CREATE TABLE tokens (
    id      text   NOT NULL PRIMARY KEY,
    sha256  bytea  NOT NULL UNIQUE,
    chain   text   NOT NULL,
    name    text   NOT NULL,
    scopes  text   NOT NULL, -- JSON
    stores  text   NOT NULL, -- JSON
    created bigint NOT NULL
);

CREATE TABLE leases (
    name   text   NOT NULL PRIMARY KEY,
    holder text   NOT NULL,
    until  bigint NOT NULL
);
