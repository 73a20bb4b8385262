#!lua flags=allow-oom
-- Take partitions: our token in each voids every late script of the owner before. Runs on a full server too: only a new
-- owner can publish the outbox and so free it.
-- ARGV: token, digest of the configuration, incarnation to create ('' = must be there), declared features ('' = not
-- stated), then the partitions' names.
local prefix = KEYS[1]
-- guard: configuration
local digest = redis.call('GET', prefix .. 'config')
if digest and digest ~= ARGV[2] then
  return {'other configuration', digest}
end
-- end guard
local incarnation = redis.call('GET', prefix .. 'incarnation')
if not incarnation and ARGV[3] == '' then
  return {'lost'}
end
if not incarnation then
  incarnation = ARGV[3]
  redis.call('SET', prefix .. 'incarnation', incarnation)
end
redis.call('SET', prefix .. 'config', ARGV[2])
redis.call('DEL', prefix .. 'filling') -- what a fill of features saw no longer holds
if ARGV[4] ~= '' then
  redis.call('SET', prefix .. 'features', ARGV[4])
end
local found = {}
for at = 5, #ARGV do
  local name = ARGV[at]
  redis.call('SADD', prefix .. 'partitions', name)
  redis.call('HSET', prefix .. 'p:' .. name, 'owner', ARGV[1])
  local record = redis.call('HMGET', prefix .. 'p:' .. name, 'applied', 'committed', 'fresh')
  -- A start that was recorded and not used yet is not progress: the claim decides again.
  local applied = not record[3] and record[1] or ''
  found[#found + 1] = {name, applied, record[2] or '', redis.call('HGETALL', prefix .. 'o:' .. name)}
end
return {'claimed', incarnation, redis.call('SMEMBERS', prefix .. 'lineage'), found}
