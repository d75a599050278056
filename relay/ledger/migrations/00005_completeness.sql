-- +goose Up
-- What certificates of completeness look up.

-- Records that were appended again: few.
CREATE INDEX records_was ON records (chain, stream) WHERE was IS NOT NULL;

ALTER TABLE agents ADD COLUMN registered bigint NOT NULL DEFAULT 0; -- 0 = nobody has, or before this column
