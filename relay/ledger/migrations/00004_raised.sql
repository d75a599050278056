-- +goose Up
ALTER TABLE agents ADD COLUMN raised bigint NOT NULL DEFAULT 0; -- when its hello has raised the incarnation last; 0 = never
