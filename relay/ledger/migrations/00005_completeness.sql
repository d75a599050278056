-- +goose Up
-- What certificates of completeness look up.

-- Records that were appended again: few.
CREATE INDEX records_was ON records (chain, stream) WHERE was IS NOT NULL;

ALTER TABLE agents ADD COLUMN registered bigint NOT NULL DEFAULT 0; -- 0 = nobody has, or before this column

-- What head office has said of reasons why a day is incomplete.
CREATE TABLE settlements (
    chain   bigint NOT NULL,
    store   text   NOT NULL,
    day     text   NOT NULL,
    kind    text   NOT NULL, -- kind, who and what: the reason, word by word
    who     text   NOT NULL,
    what    text   NOT NULL,
    said_by text   NOT NULL,
    why     text   NOT NULL,
    through text   NOT NULL, -- a token's name, or the command line
    at      bigint NOT NULL,
    PRIMARY KEY (chain, store, day, kind, who, what)
);

-- Of a receipt of the store that can be read, though it was not applied; '' = none. migration 6 fills it in.
ALTER TABLE quarantined ADD COLUMN business_day text NOT NULL DEFAULT '';
