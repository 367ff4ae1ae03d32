-- What operators do with dead letters: how often one was redriven and how fast
-- it may be, which host does it, and what was edited. Every edit keeps what was there before, so
-- the event as it came is the first one's `before_body`: no row may lose them.

-- migrate:up
ALTER TABLE event_dead_letters
    ADD COLUMN redrives int NOT NULL DEFAULT 0,
    ADD COLUMN redrive_every interval; -- between two of a handler; NULL: no limit

CREATE INDEX event_dead_letters_redriving_handler
    ON event_dead_letters (handler) WHERE state = 'redriving';

-- Of a handler's letters one host at a time gives out, in their order.
CREATE TABLE event_redrive_leases (
    handler    text        PRIMARY KEY,
    owner      text        NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE event_dead_letter_edits (
    id             bigserial   PRIMARY KEY,
    dead_letter_id bigint      NOT NULL REFERENCES event_dead_letters (id),
    at             timestamptz NOT NULL DEFAULT now(),
    who            text        NOT NULL,
    reason         text        NOT NULL DEFAULT '',
    before_body    bytea,
    before_facts   jsonb       NOT NULL,
    after_body     bytea,
    after_facts    jsonb       NOT NULL
);
CREATE INDEX event_dead_letter_edits_letter ON event_dead_letter_edits (dead_letter_id);

DO $$
BEGIN
    GRANT SELECT, INSERT, UPDATE, DELETE ON event_redrive_leases TO moontide_host;
    GRANT SELECT, INSERT ON event_dead_letter_edits TO moontide_host;
    GRANT USAGE ON SEQUENCE event_dead_letter_edits_id_seq TO moontide_host;
    GRANT SELECT ON event_dead_letter_edits, event_redrive_leases TO moontide_auditor;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE WARNING 'rights for dead letters not granted: %', SQLERRM;
END
$$;

-- migrate:down
DROP TABLE event_dead_letter_edits, event_redrive_leases;
DROP INDEX event_dead_letters_redriving_handler;
ALTER TABLE event_dead_letters DROP COLUMN redrives, DROP COLUMN redrive_every;
