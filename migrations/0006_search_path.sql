-- Functions that run with their owner's rights look for tables where the caller
-- cannot put any: without pg_temp at its end a search_path begins with it, and
-- a producer's temporary domain_events, with a trigger, ran as the owner.

-- migrate:up
DO $$
DECLARE
    fn regprocedure;
BEGIN
    FOR fn IN
        SELECT p.oid::regprocedure FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = current_schema()
          AND p.proname IN ('moontide_create_partitions', 'moontide_fence',
                            'moontide_next_version', 'publish_event', 'publish_events',
                            'events_by_aggregate', 'events_by_type')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', fn, current_schema());
    END LOOP;
END
$$;

-- migrate:down
SELECT; -- as they are now they suit the earlier versions, too
