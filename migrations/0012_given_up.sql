-- What operators gave up so that a partition goes on, and why: events that no
-- handler will see, unless somebody brings them again. And since when a position
-- is there, which tells a partition that was added from a topic that is new.

-- migrate:up
CREATE TABLE event_given_up (
    id          bigserial   PRIMARY KEY,
    handler     text        NOT NULL,
    source      text        NOT NULL,
    partition   text        NOT NULL,
    source_id   text        NOT NULL,
    first_place bigint      NOT NULL, -- both inside
    last_place  bigint      NOT NULL,
    trouble     text        NOT NULL DEFAULT '',
    reason      text        NOT NULL,
    who         text        NOT NULL,
    at          timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_given_up_place ON event_given_up (handler, source, partition, first_place);

ALTER TABLE event_handler_positions ADD COLUMN created_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX event_handler_positions_source ON event_handler_positions (source_id);

DO $$
BEGIN
    GRANT SELECT, INSERT ON event_given_up TO moontide_host;
    GRANT USAGE ON SEQUENCE event_given_up_id_seq TO moontide_host;
    GRANT SELECT ON event_given_up TO moontide_auditor;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE WARNING 'rights on event_given_up not granted: %', SQLERRM;
END
$$;

-- migrate:down
DROP INDEX event_handler_positions_source;
ALTER TABLE event_handler_positions DROP COLUMN created_at;
DROP TABLE event_given_up;
