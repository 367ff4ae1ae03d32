-- Pages of events for handlers that read the store. A page begins where the one
-- before ended, so that a walk over n events reads n and not n for every page.
--
-- EXECUTE and not a plain statement: planned without its values this would read
-- all events of the type and sort them, which is right for few only.

-- migrate:up
CREATE FUNCTION events_by_type_page(type text, since timestamptz, after_seq bigint, page int)
RETURNS SETOF domain_events LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    -- The first condition on the time chooses the partitions.
    RETURN QUERY EXECUTE
        'SELECT * FROM domain_events WHERE event_type = $1 AND occurred_at >= $2 '
        'AND (occurred_at, seq) > ($2, $3) ORDER BY occurred_at, seq LIMIT $4'
        USING type, since, after_seq, page;
END
$$;

-- seq + 0, or the planner may walk the whole store by its index on seq.
CREATE FUNCTION events_by_aggregate_page(aggregate_type text, aggregate_id text,
                                         after_seq bigint, page int)
RETURNS SETOF domain_events LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN QUERY EXECUTE
        'SELECT * FROM domain_events WHERE aggregate_type = $1 '
        'AND aggregate_id = CAST($2 AS :ids:) AND seq + 0 > $3 ORDER BY seq + 0 LIMIT $4'
        USING aggregate_type, aggregate_id, after_seq, page;
END
$$;

-- For the reason that migration 0006 gives.
DO $$
DECLARE
    fn regprocedure;
BEGIN
    FOREACH fn IN ARRAY ARRAY['events_by_type_page(text, timestamptz, bigint, int)'::regprocedure,
                              'events_by_aggregate_page(text, text, bigint, int)']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', fn, current_schema());
    END LOOP;
END
$$;

-- migrate:down
DROP FUNCTION events_by_aggregate_page(text, text, bigint, int);
DROP FUNCTION events_by_type_page(text, timestamptz, bigint, int);
