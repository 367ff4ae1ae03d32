-- For producers: one call inside their own transaction stores an event with
-- what it is about.

-- migrate:up
CREATE TABLE aggregate_versions (
    aggregate_type text   NOT NULL,
    aggregate_id   text   NOT NULL,
    version        bigint NOT NULL,
    PRIMARY KEY (aggregate_type, aggregate_id)
);

-- Numbers are given in the order of commits only while a lock on the aggregate
-- is held from before the number until the end of the transaction. A producer
-- that holds one of its own may do without: SET moontide.publish_lock = 'off'.
CREATE FUNCTION moontide_lock_aggregate(aggregate_type text, aggregate_id text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('moontide.publish_lock', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(aggregate_type || '/' || aggregate_id, 0));
    END IF;
END
$$;

-- The next version of an aggregate, if it still is at the expected one.
CREATE FUNCTION moontide_next_version(kind text, aggregate text, expected bigint)
RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    found_version bigint;
BEGIN
    IF expected = 0 THEN
        INSERT INTO aggregate_versions VALUES (kind, aggregate, 1) ON CONFLICT DO NOTHING;
    ELSE
        UPDATE aggregate_versions AS v SET version = expected + 1
        WHERE v.aggregate_type = kind AND v.aggregate_id = aggregate AND v.version = expected;
    END IF;
    IF FOUND THEN
        RETURN expected + 1;
    END IF;
    SELECT v.version INTO found_version FROM aggregate_versions AS v
    WHERE v.aggregate_type = kind AND v.aggregate_id = aggregate;
    RAISE EXCEPTION '%/% is at version %, expected %', kind, aggregate,
        coalesce(found_version, 0), expected USING ERRCODE = 'MT001';
END
$$;

CREATE FUNCTION publish_event(
    type             text,
    aggregate_type   text,
    aggregate_id     text,
    payload          jsonb,
    metadata         jsonb       DEFAULT '{}',
    version          int         DEFAULT 1,
    expected_version bigint      DEFAULT NULL,
    occurred_at      timestamptz DEFAULT clock_timestamp(),
    id               text        DEFAULT NULL
) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    event_id text := coalesce(id, gen_random_uuid()::text);
    next     bigint;
BEGIN
    PERFORM moontide_lock_aggregate(aggregate_type, aggregate_id);
    IF expected_version IS NOT NULL THEN
        next := moontide_next_version(aggregate_type, aggregate_id, expected_version);
    END IF;
    INSERT INTO domain_events (id, aggregate_id, aggregate_type, event_type, event_version,
                               event_data, metadata, occurred_at, aggregate_version)
    VALUES (CAST(event_id AS :ids:), CAST(publish_event.aggregate_id AS :ids:),
            publish_event.aggregate_type, type, coalesce(version, 1), payload,
            coalesce(publish_event.metadata, '{}'),
            coalesce(publish_event.occurred_at, clock_timestamp()), next);
    RETURN event_id;
END
$$;

-- Many native envelopes at once, numbered in their order. All aggregates are
-- locked first and in one order, so that two such calls cannot deadlock.
CREATE FUNCTION publish_events(envelopes jsonb) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF jsonb_typeof(envelopes) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'publish_events takes a JSON array of envelopes'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM moontide_lock_aggregate(kind, aggregate)
    FROM (SELECT DISTINCT e ->> 'aggregateType' AS kind, e ->> 'aggregateId' AS aggregate
          FROM jsonb_array_elements(envelopes) AS e ORDER BY 1, 2) AS aggregates;
    RETURN QUERY
    INSERT INTO domain_events AS d (id, aggregate_id, aggregate_type, event_type,
                                    event_version, event_data, metadata, occurred_at,
                                    aggregate_version)
    SELECT CAST(coalesce(e ->> 'id', gen_random_uuid()::text) AS :ids:),
           CAST(e ->> 'aggregateId' AS :ids:), e ->> 'aggregateType', e ->> 'eventType',
           coalesce((e ->> 'eventVersion')::int, 1), e -> 'payload',
           coalesce(e -> 'metadata', '{}'),
           coalesce((e ->> 'occurredAt')::timestamptz, clock_timestamp()),
           (e ->> 'aggregateVersion')::bigint
    FROM jsonb_array_elements(envelopes) WITH ORDINALITY AS list (e, n)
    ORDER BY n
    RETURNING d.id::text;
END
$$;

CREATE FUNCTION events_by_aggregate(aggregate_type text, aggregate_id text)
RETURNS SETOF domain_events LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT * FROM domain_events AS e
    WHERE e.aggregate_id = CAST($2 AS :ids:) AND e.aggregate_type = $1
    ORDER BY e.seq
$$;

CREATE FUNCTION events_by_type(type text, since timestamptz DEFAULT '-infinity')
RETURNS SETOF domain_events LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT * FROM domain_events AS e
    WHERE e.event_type = $1 AND e.occurred_at >= $2
    ORDER BY e.occurred_at, e.seq
$$;

REVOKE ALL ON FUNCTION publish_event(text, text, text, jsonb, jsonb, int, bigint, timestamptz, text)
    FROM PUBLIC;
REVOKE ALL ON FUNCTION publish_events(jsonb) FROM PUBLIC;

-- migrate:down
DROP FUNCTION events_by_type(text, timestamptz);
DROP FUNCTION events_by_aggregate(text, text);
DROP FUNCTION publish_events(jsonb);
DROP FUNCTION publish_event(text, text, text, jsonb, jsonb, int, bigint, timestamptz, text);
DROP FUNCTION moontide_next_version(text, text, bigint);
DROP FUNCTION moontide_lock_aggregate(text, text);
DROP TABLE aggregate_versions;
