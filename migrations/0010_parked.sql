-- The parked queue: deliveries that wait for long, in their lanes' order. A row
-- holds what is needed to run it: a copy of a Kafka record, which may expire,
-- or the number (place) of a row of the outbox.
--
-- Of a lane only the head may run: its first row, unless a dead letter before
-- it is waited for. Whatever changes a lane takes its lock first, so that a row
-- that comes and the head that goes do not miss each other.

-- migrate:up
CREATE TABLE event_parked (
    id             bigserial   PRIMARY KEY,
    handler        text        NOT NULL,
    source         text        NOT NULL,
    partition      text        NOT NULL,
    lane           bigint,     -- NULL: alone, nothing follows it
    place          bigint      NOT NULL,
    event_id       text        NOT NULL DEFAULT '',
    event_type     text        NOT NULL DEFAULT '',
    aggregate_type text        NOT NULL DEFAULT '',
    aggregate_id   text        NOT NULL DEFAULT '',
    reason         text        NOT NULL CHECK (reason IN ('retry', 'behind', 'held')),
    flag           text        NOT NULL DEFAULT '', -- that holds it
    bucket         int         NOT NULL DEFAULT 0,  -- of its key, 0 to 9999: for percentages
    is_head        boolean     NOT NULL,
    due_at         timestamptz,                     -- NULL: when the flag lets it
    attempts       int         NOT NULL DEFAULT 0,
    class          text        NOT NULL DEFAULT '',
    error          text        NOT NULL DEFAULT '',
    history        jsonb       NOT NULL DEFAULT '[]',
    format         text        NOT NULL DEFAULT '',
    key            bytea,
    body           bytea,
    headers        jsonb,
    facts          jsonb,      -- NULL: read it again from the outbox
    verdict        text        CHECK (verdict IN ('skip', 'dead')), -- by somebody: do not run it
    verdict_reason text        NOT NULL DEFAULT '',
    parked_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (handler, source, partition, place, event_id)
) WITH (fillfactor = 80);
CREATE INDEX event_parked_due ON event_parked (due_at) WHERE is_head;
CREATE INDEX event_parked_lane ON event_parked (handler, source, partition, lane, place)
    WHERE lane IS NOT NULL;
CREATE INDEX event_parked_held ON event_parked (flag, bucket)
    WHERE reason = 'held' AND due_at IS NULL;
CREATE INDEX event_parked_event ON event_parked (event_id);

-- Of a handler with on_dead = "park": its lane waits for the letter.
ALTER TABLE event_dead_letters
    ADD COLUMN lane bigint,
    ADD COLUMN keeps_order boolean NOT NULL DEFAULT false;
CREATE INDEX event_dead_letters_lane ON event_dead_letters (handler, source, partition, lane, place)
    WHERE keeps_order AND state IN ('dead', 'redriving');

CREATE FUNCTION moontide_lock_lane(handler text, source text, part text, lane bigint)
RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended(concat_ws('/', $1, $2, $3), $4))
$$;

-- The lane's lock is held. Its first row, if nothing before it is waited for,
-- may run from now on.
CREATE FUNCTION moontide_next_of_lane(handler text, source text, part text, lane bigint)
RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    UPDATE event_parked AS p
    SET is_head = true, due_at = CASE WHEN p.reason = 'behind' THEN now() ELSE p.due_at END
    WHERE NOT p.is_head
      AND p.id = (SELECT f.id FROM event_parked AS f
                  WHERE f.handler = $1 AND f.source = $2 AND f.partition = $3 AND f.lane = $4
                  ORDER BY f.place LIMIT 1)
      AND NOT EXISTS (SELECT FROM event_dead_letters AS d
                      WHERE d.handler = $1 AND d.source = $2 AND d.partition = $3
                        AND d.lane = $4 AND d.place < p.place
                        AND d.keeps_order AND d.state IN ('dead', 'redriving'))
$$;

-- Puts a row, or writes over the one that is there. False: another host has the
-- partition.
CREATE FUNCTION moontide_park(p event_parked, delay_ms bigint, epoch bigint)
RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT moontide_holds(p.handler, p.source, p.partition, epoch) THEN
        RETURN false;
    END IF;
    p.is_head := true;
    IF p.lane IS NOT NULL THEN
        PERFORM moontide_lock_lane(p.handler, p.source, p.partition, p.lane);
        p.is_head := NOT EXISTS (SELECT FROM event_parked AS f
                                 WHERE f.handler = p.handler AND f.source = p.source
                                   AND f.partition = p.partition AND f.lane = p.lane
                                   AND f.place < p.place)
                 AND NOT EXISTS (SELECT FROM event_dead_letters AS d
                                 WHERE d.handler = p.handler AND d.source = p.source
                                   AND d.partition = p.partition AND d.lane = p.lane
                                   AND d.place < p.place
                                   AND d.keeps_order AND d.state IN ('dead', 'redriving'));
    END IF;
    p.due_at := CASE p.reason WHEN 'retry' THEN now() + delay_ms * interval '1 millisecond'
                              WHEN 'behind' THEN now() END;
    INSERT INTO event_parked AS o (handler, source, partition, lane, place, event_id, event_type,
        aggregate_type, aggregate_id, reason, flag, bucket, is_head, due_at, attempts, class,
        error, history, format, key, body, headers, facts)
    VALUES (p.handler, p.source, p.partition, p.lane, p.place, p.event_id, p.event_type,
        p.aggregate_type, p.aggregate_id, p.reason, p.flag, p.bucket, p.is_head, p.due_at,
        p.attempts, p.class, p.error, p.history, p.format, p.key, p.body, p.headers, p.facts)
    ON CONFLICT (handler, source, partition, place, event_id) DO UPDATE SET
        reason = excluded.reason, flag = excluded.flag, bucket = excluded.bucket,
        is_head = excluded.is_head, due_at = excluded.due_at, attempts = excluded.attempts,
        class = excluded.class, error = excluded.error, history = o.history || excluded.history;
    RETURN true;
END
$$;

-- It has ended. True: nothing is left of its lane, which is free now.
CREATE FUNCTION moontide_unpark(parked bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    p event_parked;
BEGIN
    SELECT * INTO p FROM event_parked WHERE id = parked;
    IF p.lane IS NOT NULL THEN
        PERFORM moontide_lock_lane(p.handler, p.source, p.partition, p.lane);
    END IF;
    DELETE FROM event_parked WHERE id = parked;
    IF p.lane IS NULL THEN
        RETURN false;
    END IF;
    PERFORM moontide_next_of_lane(p.handler, p.source, p.partition, p.lane);
    RETURN NOT EXISTS (SELECT FROM event_parked AS f
                       WHERE f.handler = p.handler AND f.source = p.source
                         AND f.partition = p.partition AND f.lane = p.lane)
       AND NOT EXISTS (SELECT FROM event_dead_letters AS d
                       WHERE d.handler = p.handler AND d.source = p.source
                         AND d.partition = p.partition AND d.lane = p.lane
                         AND d.keeps_order AND d.state IN ('dead', 'redriving'));
END
$$;

-- A letter that was waited for has ended: what follows it goes on, whoever did it.
CREATE FUNCTION moontide_letter_ended() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM moontide_lock_lane(NEW.handler, NEW.source, NEW.partition, NEW.lane);
    PERFORM moontide_next_of_lane(NEW.handler, NEW.source, NEW.partition, NEW.lane);
    RETURN NULL;
END
$$;
CREATE TRIGGER letter_ended AFTER UPDATE OF state ON event_dead_letters FOR EACH ROW
    WHEN (NEW.keeps_order AND NEW.lane IS NOT NULL
          AND OLD.state IN ('dead', 'redriving') AND NEW.state IN ('redriven', 'discarded'))
    EXECUTE FUNCTION moontide_letter_ended();

DO $$
DECLARE
    fn regprocedure;
BEGIN
    -- For the reason that migration 0006 gives.
    FOREACH fn IN ARRAY ARRAY['moontide_next_of_lane(text, text, text, bigint)'::regprocedure,
                              'moontide_park(event_parked, bigint, bigint)',
                              'moontide_unpark(bigint)', 'moontide_letter_ended()']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', fn, current_schema());
    END LOOP;
    GRANT SELECT, INSERT, UPDATE, DELETE ON event_parked TO moontide_host;
    GRANT USAGE ON SEQUENCE event_parked_id_seq TO moontide_host;
    GRANT SELECT ON event_parked TO moontide_auditor;
EXCEPTION WHEN undefined_object OR insufficient_privilege THEN
    RAISE WARNING 'rights on event_parked not granted: %', SQLERRM;
END
$$;

-- migrate:down
DROP TRIGGER letter_ended ON event_dead_letters;
DROP FUNCTION moontide_letter_ended();
DROP FUNCTION moontide_unpark(bigint);
DROP FUNCTION moontide_park(event_parked, bigint, bigint);
DROP FUNCTION moontide_next_of_lane(text, text, text, bigint);
DROP FUNCTION moontide_lock_lane(text, text, text, bigint);
DROP INDEX event_dead_letters_lane;
ALTER TABLE event_dead_letters DROP COLUMN lane, DROP COLUMN keeps_order;
DROP TABLE event_parked;
