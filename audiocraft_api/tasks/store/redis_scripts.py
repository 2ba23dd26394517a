"""The Lua scripts of the Redis task store: each is one atomic change. Nothing runs here.

Every key begins with KEYS[1], a prefix with a hash tag, so that a cluster keeps them together:
`task:<id>` hash of the row · `numbers` counter · `unfinished`, `queued`, `processing` ids by number · `finished` ids by time ·
`owned:<owner>` ids by number · `idempotent:<owner>:<key>` id · `audio:<id>` bytes, `audio_bytes` their sum ·
`run_seconds` of the last completed tasks · `webhooks` ids by the time they are due ·
`unfinished:<owner>` ids by number, of tasks up to the number `shared_out` · `waiting` owners that have such, by their turns · `turns` hash of
the owners' last claims, by the counter `turn`. An owner "" has the tasks without one. The releases before knew none of these last ones: what
they accept is shared out later, and what they finish is left there, to be dropped when it is met. ARGV[1] is the time in seconds, or "" for the server's own.
"""

PRELUDE = """
local function key(name) return KEYS[1] .. name end
local function clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local now = clock()
local function stamp(seconds) return string.format('%.6f', seconds) end
local function task(id) return key('task:' .. id) end
local function field(id, name) return redis.call('HGET', task(id), name) end
local function change(id, ...)
  redis.call('HSET', task(id), 'updated', stamp(now), ...)
  redis.call('HINCRBY', task(id), 'version', 1)
end
local function is_unheld(id)
  local held_until = tonumber(field(id, 'held_until') or '0')
  return held_until <= now or held_until > now + tonumber(field(id, 'hold_seconds') or '0')
end
local function has_lease(id, lease) return field(id, 'lease') == lease end
local function is_cancel_requested(id) return field(id, 'cancel_requested') == '1' end
local function owner_of(id) return field(id, 'owner') or '' end
local function share_out()
  local last = redis.call('GET', key('shared_out')) or '0'
  while true do
    local block = redis.call('ZRANGEBYSCORE', key('unfinished'), '(' .. last, '+inf', 'WITHSCORES', 'LIMIT', 0, 1000)
    if #block == 0 then break end
    for index = 1, #block, 2 do
      local owner = owner_of(block[index])
      last = block[index + 1]
      redis.call('ZADD', key('unfinished:' .. owner), last, block[index])
      -- those that had no turn yet come before the others, in the order of their tasks
      redis.call('ZADD', key('waiting'), 'NX', redis.call('HGET', key('turns'), owner) or last - 2^52, owner)
    end
    redis.call('SET', key('shared_out'), last)
  end
end
local function drop(owner, id)
  redis.call('ZREM', key('unfinished:' .. owner), id)
  if redis.call('EXISTS', key('unfinished:' .. owner)) == 0 then redis.call('ZREM', key('waiting'), owner) end
end
local function is_unfinished(id) return redis.call('ZSCORE', key('unfinished'), id) end
local function finish(id, state, ...)
  change(id, 'state', state, 'finished', stamp(now), ...)
  redis.call('HDEL', task(id), 'lease', 'held_until', 'hold_seconds')
  redis.call('ZREM', key('unfinished'), id)
  drop(owner_of(id), id)
  redis.call('ZREM', key('queued'), id)
  redis.call('ZREM', key('processing'), id)
  redis.call('ZADD', key('finished'), stamp(now), id)
  if field(id, 'webhook_url') then redis.call('ZADD', key('webhooks'), stamp(now), id) end
  local num_bytes = redis.call('STRLEN', key('audio:' .. id))
  if num_bytes > 0 then
    redis.call('DEL', key('audio:' .. id))
    redis.call('DECRBY', key('audio_bytes'), num_bytes)
  end
end
"""

SUBMIT = """
local id, max_queued, max_audio_bytes, max_unfinished, audio, owner, idempotency_key =
  ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
if redis.call('EXISTS', task(id)) == 1 then return {'twin', redis.call('HGETALL', task(id))} end
local twin_key = key('idempotent:' .. #owner .. ':' .. owner .. ':' .. idempotency_key)
if idempotency_key ~= '' then
  local twin = redis.call('GET', twin_key)
  if twin then return {'twin', redis.call('HGETALL', task(twin))} end
end
if max_unfinished > 0 and owner ~= '' then
  share_out()
  local mine = key('unfinished:' .. owner)
  if redis.call('ZCARD', mine) >= max_unfinished then
    for _, other in ipairs(redis.call('ZRANGE', mine, 0, -1)) do
      if not is_unfinished(other) then drop(owner, other) end
    end
  end
  local num_unfinished = redis.call('ZCARD', mine)
  if num_unfinished >= max_unfinished then return {'too many', num_unfinished} end
end
local num_queued = redis.call('ZCARD', key('queued'))
if num_queued >= max_queued then return {'full', num_queued} end
if #audio > 0 and tonumber(redis.call('GET', key('audio_bytes')) or '0') + #audio > max_audio_bytes then
  return {'full of audio', 0}
end
local number = redis.call('INCR', key('numbers'))
redis.call('HSET', task(id), 'id', id, 'number', number, 'version', 0, 'state', 'queued', 'created', stamp(now),
  unpack(ARGV, 9))
change(id)
redis.call('ZADD', key('unfinished'), number, id)
redis.call('ZADD', key('queued'), number, id)
redis.call('ZADD', key('owned:' .. owner), number, id)
share_out()
if idempotency_key ~= '' then redis.call('SET', twin_key, id) end
if #audio > 0 then
  redis.call('SET', key('audio:' .. id), audio)
  redis.call('INCRBY', key('audio_bytes'), #audio)
end
return {'accepted', redis.call('HGETALL', task(id))}
"""

MADE_BY = """
local owner = ARGV[2]
local id = redis.call('GET', key('idempotent:' .. #owner .. ':' .. owner .. ':' .. ARGV[3]))
return id and redis.call('HGETALL', task(id)) or {}
"""

CLAIM = """
local lease, lease_seconds, wanted, max_attempts, code, message =
  ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
local function num_attempts(id) return tonumber(field(id, 'attempts') or '0') end
local worker, others, num_runs = string.match(lease, '^.*/'), {}, {}
for _, id in ipairs(redis.call('ZRANGE', key('processing'), 0, -1)) do
  if not is_unheld(id) then
    num_runs[owner_of(id)] = (num_runs[owner_of(id)] or 0) + 1
    if string.sub(field(id, 'lease') or '', 1, #worker) == worker then
      if num_attempts(id) > max_attempts then return {} end  -- that one runs alone
      others[#others + 1] = id
    end
  end
end
local function claim(id)
  local attempts = num_attempts(id)
  local is_last = attempts == max_attempts and field(id, 'in_company') == '1'
  if is_cancel_requested(id) then
    finish(id, 'canceled')
  elseif is_last and #others > 0 then
    return {}  -- until they have ended
  elseif attempts >= max_attempts and not is_last then
    finish(id, 'failed', 'error', (string.gsub(message, '{attempts}', attempts)), 'error_code', code)
  else
    for _, other in ipairs(others) do redis.call('HSET', task(other), 'in_company', 1) end
    redis.call('HSET', task(id), 'in_company', (is_last or #others > 0) and 1 or 0)
    redis.call('ZREM', key('queued'), id)
    redis.call('ZADD', key('processing'), field(id, 'number'), id)
    local turn = redis.call('INCR', key('turn'))
    redis.call('HSET', key('turns'), owner_of(id), turn)
    redis.call('ZADD', key('waiting'), 'XX', turn, owner_of(id))
    change(id, 'state', 'processing', 'attempts', attempts + 1, 'lease', lease,
      'held_until', stamp(now + lease_seconds), 'hold_seconds', stamp(lease_seconds), 'started', stamp(now),
      'num_frames_done', 0, 'num_frames_total', 0)
    return redis.call('HGETALL', task(id))
  end
end
if wanted ~= '' then
  return is_unfinished(wanted) and is_unheld(wanted) and claim(wanted) or {}
end
local function claim_of(owner)
  local last = '-inf'
  while true do  -- by blocks: those that are held come first and are few, the queue may be long
    local block = redis.call('ZRANGEBYSCORE', key('unfinished:' .. owner), last, '+inf', 'WITHSCORES', 'LIMIT', 0, 100)
    if #block == 0 then return nil end
    for index = 1, #block, 2 do
      if not is_unfinished(block[index]) then
        drop(owner, block[index])
      elseif is_unheld(block[index]) then
        local claimed = claim(block[index])
        if claimed then return claimed end
      end
      last = '(' .. block[index + 1]
    end
  end
end
share_out()
local busy, first = {}, 0
while true do
  local block = redis.call('ZRANGE', key('waiting'), first, first + 99, 'WITHSCORES')
  if #block == 0 then break end
  for index = 1, #block, 2 do
    local owner = block[index]
    if num_runs[owner] then
      busy[#busy + 1] = {owner, num_runs[owner], #busy}
    else
      local claimed = claim_of(owner)
      if claimed then return claimed end
    end
    if redis.call('ZSCORE', key('waiting'), owner) then first = first + 1 end  -- else the others have moved up
  end
end
table.sort(busy, function(one, other)
  if one[2] ~= other[2] then return one[2] < other[2] end
  return one[3] < other[3]
end)
for _, owner in ipairs(busy) do
  local claimed = claim_of(owner[1])
  if claimed then return claimed end
end
return {}
"""

NUM_UNHELD = """
local num_unheld = 0
for _, id in ipairs(redis.call('ZRANGE', key('unfinished'), 0, tonumber(ARGV[2]) - 1)) do
  if is_unheld(id) then num_unheld = num_unheld + 1 end
end
return num_unheld
"""

HEARTBEAT = """
local id, lease, done, total = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not has_lease(id, lease) then return 'lost' end
redis.call('HSET', task(id), 'held_until', stamp(now + tonumber(field(id, 'hold_seconds'))))
if field(id, 'num_frames_done') ~= done or field(id, 'num_frames_total') ~= total then
  change(id, 'num_frames_done', done, 'num_frames_total', total)
end
return is_cancel_requested(id) and 'canceled' or 'held'
"""

FINISH = """
local id, lease, state = ARGV[2], ARGV[3], ARGV[4]
if not has_lease(id, lease) then return '' end
if is_cancel_requested(id) then
  finish(id, 'canceled')
  return 'canceled'
end
finish(id, state, unpack(ARGV, 6))
if state == 'completed' then
  redis.call('LPUSH', key('run_seconds'), stamp(math.max(now - tonumber(field(id, 'started')), 0)))
  redis.call('LTRIM', key('run_seconds'), 0, tonumber(ARGV[5]) - 1)
end
return state
"""

RELEASE = """
local id, lease, pause_seconds, given_back = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if not has_lease(id, lease) then return 0 end
if is_cancel_requested(id) then
  finish(id, 'canceled')
  return 1
end
redis.call('HDEL', task(id), 'lease')
redis.call('HINCRBY', task(id), 'attempts', 0 - given_back)  -- a plain minus makes "-0" of 0
redis.call('ZREM', key('processing'), id)
redis.call('ZADD', key('queued'), field(id, 'number'), id)
change(id, 'state', 'queued', 'held_until', stamp(now + pause_seconds), 'hold_seconds', stamp(pause_seconds),
  'num_frames_done', 0, 'num_frames_total', 0)
return 1
"""

REQUEST_CANCEL = """
local id = ARGV[2]
local state = field(id, 'state')
if state == 'queued' or (state == 'processing' and is_unheld(id)) then
  finish(id, 'canceled')
elseif state == 'processing' and not is_cancel_requested(id) then
  change(id, 'cancel_requested', 1)
end
return redis.call('HGETALL', task(id))
"""

CLAIM_WEBHOOK = """
local is_busy = {}
for index = 3, #ARGV do is_busy[ARGV[index]] = true end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('webhooks'), '-inf', stamp(now))) do
  if not is_busy[field(id, 'webhook_host')] then
    redis.call('HINCRBY', task(id), 'webhook_attempts', 1)
    redis.call('ZADD', key('webhooks'), stamp(now + tonumber(ARGV[2])), id)
    return redis.call('HGETALL', task(id))
  end
end
return {}
"""

PAUSE_WEBHOOK = """
local due = stamp(now + tonumber(ARGV[3]))
redis.call('ZADD', key('webhooks'), 'XX', due, ARGV[2])
return 1
"""

EXPIRE = """
local ids = redis.call('ZRANGEBYSCORE', key('finished'), '-inf', '(' .. ARGV[2], 'LIMIT', 0, tonumber(ARGV[3]))
local results = {}
for _, id in ipairs(ids) do
  local owner, idempotency_key = field(id, 'owner') or '', field(id, 'idempotency_key')
  results[#results + 1] = field(id, 'result') or ''
  if idempotency_key then redis.call('DEL', key('idempotent:' .. #owner .. ':' .. owner .. ':' .. idempotency_key)) end
  redis.call('ZREM', key('owned:' .. owner), id)
  if redis.call('EXISTS', key('owned:' .. owner)) == 0 then redis.call('HDEL', key('turns'), owner) end
  redis.call('ZREM', key('finished'), id)
  redis.call('ZREM', key('webhooks'), id)
  redis.call('DEL', task(id))
end
return results
"""
