import numpy as np
from test_connectivity import *
def test_x(people, found):
    for dtype in ("int16","float32"):
      for p in range(14):
        w = expected_r(people,p,dtype,"pc1"); g=np.tanh(found[dtype,"pc1"][p].astype(float))
        d=np.nanmax(np.abs(w-g),axis=1) if 1 else 0
        bad=np.flatnonzero(np.nan_to_num(d)>1e-6)
        for s in bad:
            rows,norm=reference.decoded_row(people.stores[dtype],p)
            st=np.stack([rows[v]*np.sqrt(x) for v,x in people.weights[s].items()])
            ev=np.linalg.eigvalsh(st@st.T); c=np.linalg.svd(st,full_matrices=False)[2][0]
            print("XX",dtype,p,s,d[s],ev, c@st.sum(0), np.linalg.norm(st.sum(0)))
    assert 0
