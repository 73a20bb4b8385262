#!lua
-- State of new feature versions, written beside the present one and then switched to. Only the newest fill takes effect,
-- and none after a worker has claimed. ARGV: step, token of the fill, then what the step takes.
local prefix, step, token = KEYS[1], ARGV[1], ARGV[2]
local call = redis.call
local filling, filled = prefix .. 'filling', prefix .. 'filled'
if step == 'begin' then
  -- Owners are voided: a late script of a worker that is gone changes nothing from here on.
  for _, name in ipairs(call('SMEMBERS', prefix .. 'partitions')) do
    call('HDEL', prefix .. 'p:' .. name, 'owner')
  end
  call('DEL', filled, prefix .. 'cut') -- a cut that is being taken would be of two configurations
  call('SET', filling, token)
  return {'filled'}
end
-- guard: filling
if call('GET', filling) ~= token then
  return {'interrupted'}
end
-- end guard
if step == 'state' then -- (key, value) and again
  for at = 3, #ARGV, 2 do
    call('SET', prefix .. 's:' .. ARGV[at], ARGV[at + 1])
  end
elseif step == 'rows' then -- (id, row) and again: kept apart until the switch
  for at = 3, #ARGV, 2 do
    call('HSET', filled, ARGV[at], ARGV[at + 1])
  end
else -- switch: digest of the configuration, declared features
  local rows = call('HGETALL', filled)
  for at = 1, #rows, 2 do
    call('SET', prefix .. 'r:' .. rows[at], rows[at + 1])
  end
  call('SET', prefix .. 'config', ARGV[3])
  call('SET', prefix .. 'features', ARGV[4])
  call('DEL', filled, filling)
end
return {'filled'}
