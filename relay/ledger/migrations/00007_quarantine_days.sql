-- +goose Up
-- Which records in quarantine bear on a day; behind 6, which fills in business_day.
CREATE INDEX quarantined_day ON quarantined (chain, store, day);
CREATE INDEX quarantined_business_day ON quarantined (chain, store, business_day) WHERE business_day <> '';
