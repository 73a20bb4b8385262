#!lua
-- Open a lost store again: the first caller's incarnation holds, so this is the rebuild lock as well.
-- ARGV: new incarnation, then the earlier ones.
local prefix = KEYS[1]
local incarnation = redis.call('GET', prefix .. 'incarnation')
if incarnation then
  return {'open', incarnation}
end
-- guard: unfinished
if redis.call('EXISTS', prefix .. 'unfinished') == 1 then
  return {'unfinished'}
end
-- end guard
for _, name in ipairs(redis.call('SMEMBERS', prefix .. 'partitions')) do
  if redis.call('HEXISTS', prefix .. 'p:' .. name, 'applied') == 1 then
    return {'not empty', name}
  end
end
redis.call('SET', prefix .. 'incarnation', ARGV[1])
for at = 2, #ARGV do
  redis.call('SADD', prefix .. 'lineage', ARGV[at])
end
return {'open', ARGV[1]}
