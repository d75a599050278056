-- +goose Up
-- What anyone needs to check the ledger: what was left out of a stream and why, what agents
-- have signed, and what was certified of a day.

ALTER TABLE records ADD COLUMN was bytea; -- JSON of protocol.Was; part of the hash
ALTER TABLE duplicates ADD COLUMN record bytea; -- JSON of the record: its content is part of the hash
ALTER TABLE agents ADD COLUMN skew bigint NOT NULL DEFAULT 0; -- seconds that the PC's clock is ahead, at its newest hello

-- Records that were accepted once, and that the agent does not hold any more. Where the hash is
-- empty, what the stream holds by now of the stretch has come after all.
CREATE TABLE holes (
    chain     bigint NOT NULL,
    store     text   NOT NULL,
    agent     text   NOT NULL,
    epoch     text   NOT NULL,
    first_seq bigint NOT NULL,
    last_seq  bigint NOT NULL,
    hash      bytea  NOT NULL, -- of record last_seq, as the agent says; empty = the stream did not move over it
    reason    text   NOT NULL, -- damaged, trimmed
    day       text   NOT NULL, -- of the record before it, which may end the epoch before; '' = none is known
    seal      bytea,           -- JSON of protocol.Seal that was lost with seq 1, or null when that is not known: what else is missing is not known then
    received  bigint NOT NULL,
    PRIMARY KEY (chain, store, agent, epoch, first_seq, last_seq)
);

-- The same position may come with several contents when another agent delivers them.
CREATE TABLE quarantine (
    chain    bigint NOT NULL,
    id       bigint NOT NULL,
    stream   bigint NOT NULL, -- 0 = the stream did not move over it
    seq      bigint NOT NULL,
    store    text   NOT NULL,
    agent    text   NOT NULL,
    epoch    text   NOT NULL,
    kind     text   NOT NULL,
    day      text   NOT NULL,
    cause    text   NOT NULL, -- kind, body, business, was, database, raw, drained, hole
    reason   text   NOT NULL,
    received bigint NOT NULL,
    hash     bytea  NOT NULL,
    record   bytea  NOT NULL,
    PRIMARY KEY (chain, id),
    UNIQUE (chain, store, agent, epoch, seq, hash)
);
INSERT INTO quarantine (chain, id, stream, seq, store, agent, epoch, kind, day, cause, reason, received, hash, record)
    SELECT chain, id, stream, seq, store, agent, epoch, kind, day, cause, reason, received, hash, record FROM quarantined;
DROP TABLE quarantined;
ALTER TABLE quarantine RENAME TO quarantined;

-- What an agent says of a day's end, signed.
CREATE TABLE day_marks (
    chain       bigint NOT NULL,
    store       text   NOT NULL,
    day         text   NOT NULL,
    agent       text   NOT NULL,
    epoch       text   NOT NULL, -- where the mark itself stands
    seq         bigint NOT NULL,
    head_epoch  text   NOT NULL,
    head_seq    bigint NOT NULL,
    head_hash   bytea  NOT NULL,
    certificate bytea  NOT NULL, -- SHA-256 of the agent's certificate
    signature   bytea  NOT NULL,
    PRIMARY KEY (chain, store, day, agent, epoch, seq)
);

-- The certificates that agents have shown, kept to verify what they signed.
CREATE TABLE agent_certificates (
    chain  bigint NOT NULL,
    sha256 bytea  NOT NULL,
    store  text   NOT NULL,
    agent  text   NOT NULL,
    der    bytea  NOT NULL,
    seen   bigint NOT NULL, -- first time
    PRIMARY KEY (chain, sha256)
);

-- What head office expects of a store beside what has been seen there.
CREATE TABLE roster (
    chain     bigint NOT NULL,
    store     text   NOT NULL,
    kind      text   NOT NULL, -- agent, workstation, counter
    id        text   NOT NULL,
    first_day text   NOT NULL, -- expected from this business day on
    last_day  text   NOT NULL, -- and up to this one; '' = until further notice
    PRIMARY KEY (chain, store, kind, id)
);

-- The certificates of completeness that were given out; a later version restates.
CREATE TABLE day_certificates (
    chain   bigint NOT NULL,
    store   text   NOT NULL,
    day     text   NOT NULL,
    version bigint NOT NULL, -- 1, 2, ...
    state   text   NOT NULL, -- complete, incomplete
    issued  bigint NOT NULL,
    digest  bytea  NOT NULL, -- of what it states, without version, times and signature
    body    bytea  NOT NULL, -- as it was given out
    PRIMARY KEY (chain, store, day, version)
);

-- The newest totals of each counter, against counting people again from a disk rolled back.
CREATE TABLE counters (
    chain   bigint NOT NULL,
    store   text   NOT NULL,
    agent   text   NOT NULL,
    counter text   NOT NULL,
    raw_in  bigint NOT NULL,
    raw_out bigint NOT NULL,
    PRIMARY KEY (chain, store, agent, counter)
);
